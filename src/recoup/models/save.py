"""Save a model as an ordinary folder that `AutoModelForCausalLM.from_pretrained` loads, all or nothing."""

from collections.abc import Callable
from pathlib import Path

from recoup.models.load import LanguageModel, quiet
from recoup.run_folder import atomic_folder


def save(model: LanguageModel, folder: Path, also: Callable[[Path], None] | None = None) -> None:
    """Write weights (safetensors), config, generation config, tokenizer and chat template to `folder`.

    Args:
        model: what to save, in the type its weights have.
        folder: takes its place only when everything is written.
        also: writes more files into the folder before it takes its place (the structure).

    Raises:
        RunFolderError: the disk is full or the folder is read-only; what stood there is untouched.
    """
    with quiet(), atomic_folder(folder) as temporary:
        model.model.save_pretrained(temporary)
        model.tokenizer.save_pretrained(temporary)
        if also is not None:
            also(temporary)
