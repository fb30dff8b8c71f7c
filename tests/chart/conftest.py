"""Everything in here needs Helm as a library, which has no wheels for some platforms."""

from __future__ import annotations

import pytest

pytest.importorskip("helm_python", reason="helm-python-sdk is not installed: pip install 'busq[dev]'")
