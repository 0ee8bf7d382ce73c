"""``train.py`` (``python -m tests.broken_run ARGUMENTS``) where one rank fails, as the environment's ``BROKEN`` says.

``RANK PLACE OTHERS``: the rank that raises; ``setup``: as it reads its lists, ``pass``: at its first batch, or
``codebook``: when it fits one; what the other does: ``work``, or ``wait`` where it gets no word of it, as under NCCL,
whose collectives do not see that a peer has gone. ``stay`` for OTHERS: they work, but the broken rank waits for them at
its end, as NCCL does.
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
    from cxlp.data.folder import Folder
    from cxlp.frozen.fit import FrozenFit
    from cxlp.heads.fisher_vector import FisherVector
    from cxlp.utils.distributed import rank
    from cxlp.utils.errors import CxlpError

    broken, place, others = os.environ["BROKEN"].split()
    cxlp.utils.processes.GRACE = 2.0
    places = {"setup": (Folder, "read"), "codebook": (FisherVector, "learn"), "pass": (FrozenFit, "observe")}
    owner, name = places[place]
    whole = getattr(owner, name)

    def work(*args: Any) -> Any:
        # There is no process group yet where the lists are read.
        if (int(os.environ.get("LOCAL_RANK", 0)) if place == "setup" else rank()) == int(broken):
            if others == "stay":
                atexit.register(time.sleep, FOREVER)
            raise CxlpError("broken on purpose")
        if others == "wait":
            time.sleep(FOREVER)
        return whole(*args)

    with mock.patch.object(owner, name, work):
        sys.exit(main())
