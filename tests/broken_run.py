"""``train.py`` (``python -m tests.broken_run ARGUMENTS``) where one rank fails, as the environment's ``BROKEN`` says.

``RANK PLACE OTHERS``: the rank that raises; ``pass``: at its first batch, or ``codebook``: when it fits one; what the
other does: ``work``, or ``wait`` where it gets no word of it, as under NCCL, whose collectives do not see that a peer
has gone. ``stay`` for OTHERS: they work, but the broken rank waits for them at its end, as NCCL does.
"""

import atexit
import os
import sys
import time
from typing import Any
from unittest import mock

#: Longer than any test waits.
FOREVER = 120

if __name__ == "__main__":
    import cxlp.utils.processes
    from cxlp.commands.train import main
    from cxlp.frozen.fit import FrozenFit
    from cxlp.heads.fisher_vector import FisherVector
    from cxlp.utils.distributed import rank
    from cxlp.utils.errors import CxlpError

    broken, place, others = os.environ["BROKEN"].split()
    cxlp.utils.processes.GRACE = 2.0
    owner, name = (FisherVector, "learn") if place == "codebook" else (FrozenFit, "observe")
    whole = getattr(owner, name)

    def work(*args: Any) -> Any:
        if rank() == int(broken):
            if others == "stay":
                atexit.register(time.sleep, FOREVER)
            raise CxlpError("broken on purpose")
        if others == "wait":
            time.sleep(FOREVER)
        return whole(*args)

    with mock.patch.object(owner, name, work):
        sys.exit(main())
