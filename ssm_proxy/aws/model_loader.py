"""botocore's data, read fast: a tenth of the service model, and no walk over four hundred services.

Making a client reads a 1.2 MB list of endpoints and the whole model of Systems Manager, and looks into the folders of
all services, twice. That is 60 ms of processor time, more than the rest of the client takes. ``scripts/trim_model``
cuts ``models/`` out of botocore's own data; rule sets, partitions and all other services still come from botocore.

Imports botocore: import this module where a session is made, not before.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from botocore.loaders import JSONFileLoader, Loader

MODELS = str(Path(__file__).parent / "models")


class FastFileLoader(JSONFileLoader):
    """Read plain JSON files into plain dictionaries, which keep their order; botocore makes OrderedDicts."""

    def load_file(self, file_path: str) -> Any:
        try:
            with open(file_path + ".json", "rb") as file:
                return json.loads(file.read())
        except FileNotFoundError:
            return super().load_file(file_path)  # compressed, or not there


class FastLoader(Loader):
    """Take the name of a folder for the name of a service, and our endpoints for botocore's own."""

    def list_available_services(self, type_name: str) -> list[str]:
        """Give the names of all folders; botocore would look for ``type_name`` in each, only to word an error."""
        return sorted({name for path in self.search_paths if os.path.isdir(path) for name in os.listdir(path)})

    def is_builtin_path(self, path: str) -> bool:
        """Tell whether data is botocore's; what is not would override the endpoint rule set."""
        return path.startswith(MODELS) or super().is_builtin_path(path)


def create_loader(data_path: str | None) -> Loader:
    """Make the loader of a session.

    Args:
        data_path: AWS_DATA_PATH or the profile's ``data_path``; folders of the user's own models, looked at first.
    """
    own = [os.path.expanduser(os.path.expandvars(path)) for path in (data_path or "").split(os.pathsep) if path]
    return FastLoader(extra_search_paths=[*own, MODELS], file_loader=FastFileLoader())
