"""A model in another program's format."""

from recoup.results.base import Result


class ExportResult(Result):
    """A model in another program's format, and how far that program's answers are from the trained model's."""

    source: str  # the model that was exported, as the user named it
    target: str  # `to` of the config
    output: str  # folder that holds the files
    files: dict[str, int]  # name → bytes, the card and this record left out
    tensor_types: dict[str, int]  # how a weight is stored → number of weights
    structure: str  # what the trained model keeps, one line
    consumer: str  # the program that read the files back, with its version
    num_prompts: int
    num_tokens: int  # completion tokens compared
    token_kl_nats: float  # mean KL(trained model ‖ exported model)
    max_logit_difference: float
    top1_agreement: float
    notes: tuple[
        str, ...
    ] = ()  # what a user should know: weights not kept exactly, programs that do not take the format
    seconds: float
