"""What Python runs first in a bundle; written for any Python, so that an old one can refuse in a sentence."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036
    sys.stderr.write(
        "error: Python %d.%d is too old for this bundle, which needs 3.10 or newer; "  # noqa: UP031
        "start it with a newer one, for example `python3.11 bundle.pyz`.\n" % sys.version_info[:2]
    )
    sys.exit(2)

from pipeline.device.service.main import main

sys.exit(main())
