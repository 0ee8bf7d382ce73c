"""``train.py`` with a rank that fails: ``python -m tests.broken_run ARGUMENTS``.

The environment variable ``BROKEN`` is ``RANK PLACE OTHERS``. RANK raises an error. PLACE is ``setup`` (reading the
lists), ``pass`` (the first batch) or ``codebook`` (fitting a codebook). OTHERS is ``work``; ``wait``, if the other
ranks get no notice, as with NCCL, whose collectives do not detect a missing peer; or ``stay``: the others work, and the
failing rank waits for them at its end, as with NCCL.
"""

import atexit
import os
import sys
import time
from typing import Any
from unittest import mock

#: Seconds that exceed the timeout of any test.
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
        # The process group does not exist yet when the lists are read.
        if (int(os.environ.get("LOCAL_RANK", 0)) if place == "setup" else rank()) == int(broken):
            if others == "stay":
                atexit.register(time.sleep, FOREVER)
            raise CxlpError("broken on purpose")
        if others == "wait":
            time.sleep(FOREVER)
        return whole(*args)

    with mock.patch.object(owner, name, work):
        sys.exit(main())
