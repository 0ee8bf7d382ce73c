# PYTHON_ARGCOMPLETE_OK (argcomplete looks for this marker before it completes arguments)
"""Train and test a network: ``python train.py --config demo.yaml``; see the README."""

if __name__ == "__main__":
    # Imported here because worker processes import this file as well and need none of these modules.
    import sys

    from cxlp.commands.train import main

    sys.exit(main())
