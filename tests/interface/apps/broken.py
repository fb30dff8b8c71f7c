"""An application whose import fails."""

import busq

bus = busq.Bus()
nonsense  # type: ignore[name-defined]  # noqa: B018, F821
