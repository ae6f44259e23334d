"""Save a model as an ordinary folder that `AutoModelForCausalLM.from_pretrained` loads, all or nothing."""

from pathlib import Path

from recoup.errors import StructureError
from recoup.models.load import LanguageModel
from recoup.models.messages import quiet
from recoup.run_folder import atomic_folder
from recoup.structure.spec import Structure, write_structure
from recoup.structure.verify import Verification, verify


def save(model: LanguageModel, structure: Structure, folder: Path) -> Verification:
    """Write weights (safetensors), configs, tokenizer, chat template and structure, or refuse: no violation is ever written.

    Args:
        model: what to save, in the type its weights have.
        structure: what its weights keep.
        folder: takes its place only when everything is written.

    Raises:
        StructureError: a weight is off its grid or mask.
        RunFolderError: the disk is full or the folder is read-only; what stood there is untouched.
    """
    checked = verify(model.model, structure)
    if not checked.exact:
        names = ", ".join(checked.violations[:3])
        raise StructureError(
            f"{folder}: not saved; {len(checked.violations)} weights left their structure ({names}, …)"
        )
    with atomic_folder(folder) as temporary:
        write_folder(model, structure, temporary)
    return checked


def write_folder(model: LanguageModel, structure: Structure, folder: Path) -> None:
    """Write the same into a folder that exists, unchecked."""
    with quiet():
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    write_structure(structure, folder)
