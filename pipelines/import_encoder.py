"""`rtp import-encoder`: USE-large/5, the instruction encoder of RT-1 and Open X-Embodiment, without TensorFlow.

Reads your own copy of the SavedModel once (that needs the extra `use`), writes it as safetensors and JSON that NumPy
runs, and checks its vectors against TensorFlow's to 1e-5. From then on `rtp preprocess --encoder OUT`, models trained
on such stores and `rtp serve` embed new instructions with it. Other SavedModels of texts to 512 numbers are taken too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import tyro

from pipelines.config.arguments import parse, require_local
from pipelines.config.output_paths import output_folder
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.next_step import print_next


@dataclass(frozen=True, kw_only=True)
class ImportEncoderArguments:
    """Flags of `rtp import-encoder`."""

    source: tyro.conf.Positional[str]
    """Folder, .tar.gz or URL of the SavedModel, as TF-Hub publishes universal-sentence-encoder-large/5."""
    out: tyro.conf.Positional[str]
    """Folder to write, on this machine; it must not exist."""
    id: str | None = None
    """Id that contracts record, for another version such as universal-sentence-encoder/4. By default it is found out:
    universal-sentence-encoder-large/5 if the model gives that one's vectors, else saved-model: and the fingerprint."""


def main(arguments: list[str]) -> JsonSummary:
    """Run the command line and say what was written."""
    flags = parse(ImportEncoderArguments, arguments, prog="rtp import-encoder", description=__doc__ or "")
    output_folder(require_local(flags.out, "OUT"), "OUT")
    from preprocessing.saved_model.import_encoder import import_encoder  # NumPy and pyarrow: --help is at once

    imported = import_encoder(flags.source, flags.out, encoder_id=flags.id, say=lambda line: print(line, flush=True))
    print(
        f"{flags.out}: {imported.encoder}, {imported.nodes:,} ops and {imported.values:,} values; its vectors differ "
        f"from TensorFlow's by {imported.largest_difference:.1e} at most\n"
        + ("" if imported.batched else "Texts are embedded one by one: together, they change each other's vectors.\n")
        + (
            f"Found by its id from now on, through {imported.noted}"
            if imported.noted
            else "Found by its id if RTP_ENCODERS names the folder that holds it"
        )
    )
    print_next("preprocess", "SOURCE", "STORES", "--encoder", flags.out)
    return {**asdict(imported), "output": flags.out}
