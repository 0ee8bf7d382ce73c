# PYTHON_ARGCOMPLETE_OK (by this, argcomplete knows that it may ask)
"""Train and test: ``python train.py --config demo.yaml``; see the README."""

if __name__ == "__main__":
    # Imported here: worker processes import this file, too, and need nothing of it.
    import sys

    from cxlp.commands.train import main

    sys.exit(main())
