"""What is on this machine: models installed, found by name, checked, removed.

A model is a folder NAME/ under data/models or data/checkpoints with a manifest.json in it. It is
made in a staging folder beside (`open_staging`), described (`make_manifest`) and put in place in
one rename (`install_model`), so what has a name is whole.
"""

from localcascade.store.install import (
    check_name_free,
    install_model,
    make_manifest,
    mark_used,
    remove_model,
)
from localcascade.store.installed import (
    InstalledModel,
    bundled_model_path,
    find_installed,
    list_models,
    measure_disk,
    read_model,
)
from localcascade.store.lookup import (
    bundled_checkpoint_folder,
    complete_installed_name,
    complete_model_name,
    find_checkpoint,
    find_model,
    list_installed,
    list_parts,
)
from localcascade.store.manifest import Kind, Manifest, StoredFile, Weights
from localcascade.store.staging import (
    Leftover,
    delete_leftover,
    find_kind_folder,
    list_leftovers,
    open_staging,
)

__all__ = [
    "InstalledModel",
    "Kind",
    "Leftover",
    "Manifest",
    "StoredFile",
    "Weights",
    "bundled_checkpoint_folder",
    "bundled_model_path",
    "check_name_free",
    "complete_installed_name",
    "complete_model_name",
    "delete_leftover",
    "find_checkpoint",
    "find_installed",
    "find_kind_folder",
    "find_model",
    "install_model",
    "list_installed",
    "list_leftovers",
    "list_models",
    "list_parts",
    "make_manifest",
    "mark_used",
    "measure_disk",
    "open_staging",
    "read_model",
    "remove_model",
]
