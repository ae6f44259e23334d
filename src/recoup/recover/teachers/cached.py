"""Scores of fixed completions, kept on disk: what a teacher says of the same tokens is worked out once.

- `hidden_states`: what the teacher put out, in its own type: the loss is exact. 2 D bytes a token in bf16.
- `top_k`: its K likeliest tokens over the shared vocabulary and, as one more token, the probability of the rest: a lower
  bound of the divergence (merging tokens never raises one). 8 K bytes a token, so smaller where K < D / 4.

Measured with SmolLM2-135M-Instruct (D = 576) and its 4-bit student on 352 tokens, loss 0.477 nats forward and 0.551 reverse: a
hit takes about 1/1000 of the time of a score, and top-k lacks, of the exact loss,

    K                    8       32      128     512
    forward KL           28.6%   15.2%   7.4%    3.0%
    reverse KL           42.2%   26.2%   15.1%   7.0%
    bytes of bf16 D      6%      23%     89%     355%

One safetensors file per rollout, named by a hash of the tokens, of where the completion begins, of the teacher's content and of
what is kept; so a changed teacher, prompt or demonstration finds nothing old. Files come by rename and carry a
checksum: one that is cut off or altered is worked out anew. Exact is up to how a batch was padded: in another batch the same
rollout's sums differ in their last bits, in bf16 by a KL of 0.002 nats.

Shapes: B rollouts, T padded tokens, N completion tokens, K likeliest tokens.
"""

import hashlib
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recoup.divergence import Head, HiddenTargets, Targets, TopKTargets
from recoup.divergence.topk import top_k
from recoup.models.load import LanguageModel
from recoup.models.sample import Rollouts
from recoup.recover.teachers.base import MEGABYTE, Teacher
from recoup.run_folder import atomic_file

Kept = dict[str, Tensor]  # of one rollout


class Cached(Teacher):
    """A teacher whose scores are kept in `folder`.

    Its `model` and memory are the teacher's. A hit runs no forward pass, so block outputs are not seen on the way: ask
    `model` for them.

    Args:
        teacher: one that does not move.
        folder: may be shared by teachers and runs.
        kind: what is kept.
        top_k: K of `kind: top_k`.
    """

    def __init__(self, teacher: Teacher, folder: Path, kind: Literal["hidden_states", "top_k"], top_k: int) -> None:
        assert teacher.identity is not None, f"{teacher.name} moves: its scores are not worth keeping"
        self.name, self.num_shared = teacher.name, teacher.num_shared
        self.inner = teacher
        self._top_k = min(top_k, teacher.num_shared) if kind == "top_k" else None
        what = kind if self._top_k is None else f"{kind} {self._top_k} of {self.num_shared}"
        self.identity = f"{teacher.identity} {what}"
        self._folder = folder / hashlib.sha256(self.identity.encode()).hexdigest()

    def model(self) -> AbstractContextManager[LanguageModel]:
        """The teacher's."""
        return self.inner.model()

    def head(self) -> Head:
        """The teacher's."""
        return self.inner.head()

    def memory_bytes(self) -> int:
        """The teacher's: it is there for what is not kept yet."""
        return self.inner.memory_bytes()

    def disk_bytes(self) -> int:
        """Size of all that is kept of this teacher."""
        return sum(path.stat().st_size for path in self._folder.glob("*.safetensors"))

    def describe(self) -> str:
        """One line for the user."""
        return f"{self.inner.describe()}, {self.disk_bytes() / MEGABYTE:,.1f} MB of scores on disk"

    def score(self, rollouts: Rollouts) -> Targets:
        """Scores from disk, and from the teacher where there are none; its own are kept.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        paths = [self._path(tokens, length) for tokens, length in _rows(rollouts)]
        lengths = rollouts.completion_BT.sum(-1).tolist()
        kept = [read(path, length) for path, length in zip(paths, lengths, strict=True)]
        missing = [row for row, found in enumerate(kept) if found is None]
        if missing:
            fresh = self._scored(_chosen(rollouts, missing), [lengths[row] for row in missing])
            for row, tensors in zip(missing, fresh, strict=True):
                write(paths[row], tensors)
                kept[row] = tensors
        device = rollouts.tokens_BT.device
        joined = {key: torch.cat([rows[key].to(device) for rows in kept if rows]) for key in kept[0] or {}}
        if self._top_k is None:
            return HiddenTargets(joined["hidden_ND"], self.head())
        return TopKTargets(joined["ids_NK"].long(), joined["logp_NK"])

    def _scored(self, rollouts: Rollouts, lengths: list[int]) -> Iterator[Kept]:
        """What is kept of each of these rollouts."""
        targets = self.inner.score(rollouts)
        assert isinstance(targets, HiddenTargets), "a cache of a cache"
        if self._top_k is None:
            tensors = {"hidden_ND": targets.hidden_ND}
        else:
            likeliest = top_k(targets.hidden_ND, targets.head, self._top_k, self.num_shared)
            tensors = {"ids_NK": likeliest.ids_NK.int(), "logp_NK": likeliest.logp_NK}
        split = {key: tensor.split(lengths) for key, tensor in tensors.items()}
        return ({key: parts[row] for key, parts in split.items()} for row in range(len(lengths)))

    def _path(self, tokens: list[int], completion_length: int) -> Path:
        digest = hashlib.sha256(f"{completion_length} {tokens}".encode()).hexdigest()
        return self._folder / f"{digest}.safetensors"


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Keep tensors with their checksum, all or nothing.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(plain, temporary, {key: _checksum(tensor) for key, tensor in plain.items()})


def read(path: Path, length: int) -> Kept | None:
    """Tensors of `length` rows each as they were written; null if there is no such file, or it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            sums = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no mapping: it has only keys()
    except (OSError, SafetensorError):
        return None
    sound = all(len(t) == length and sums.get(key) == _checksum(t) for key, t in tensors.items())
    return tensors if tensors and sound else None


def _rows(rollouts: Rollouts) -> Iterator[tuple[list[int], int]]:
    """Token ids without pads, and how many of them, at the end, are the completion."""
    lengths = rollouts.completion_BT.sum(-1).tolist()
    for tokens_T, attention_T, length in zip(rollouts.tokens_BT, rollouts.attention_BT, lengths, strict=True):
        yield tokens_T[attention_T].tolist(), length


def _chosen(rollouts: Rollouts, rows: list[int]) -> Rollouts:
    """Some rollouts, without the columns that are pads in all of them."""
    used_T = rollouts.attention_BT[rows].any(0)
    return Rollouts(
        rollouts.tokens_BT[rows][:, used_T],
        rollouts.attention_BT[rows][:, used_T],
        rollouts.completion_BT[rows][:, used_T],
    )


def _checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().tobytes()):08x}"
