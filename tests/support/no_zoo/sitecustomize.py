"""On the path of a server under test: only the models that the test names, whatever ships with the project.

Python imports a module of this name at its start, in the server as in its worker, so both run their real commands.
"""

from __future__ import annotations

from pathlib import Path

import service.settings

service.settings.ZOO = Path("/nonexistent")
