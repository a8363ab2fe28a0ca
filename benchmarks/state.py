"""Keep the hidden states of an unfinished run, or compute them again? What either costs per block.

    python benchmarks/state.py --width 512 --samples 128 --sequence-length 256

    keep        write what leaves a block to disk and wait until it is there; once per block, always
    again       run all sequences through a block; once per finished block, after a crash
    read        read what was kept; once, after a crash

on a random Llama of two blocks. Medians of --repeats, in turn. Keeping pays when it costs little
beside the work on a block; computing again costs the more the later the crash comes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from memory import make_checkpoint

from secateur.blocks.stream import Stream
from secateur.checkpoint import open_model
from secateur.checkpoint.unfinished import read_batches, write_batches


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_checkpoint(folder / "model", options.width, 2, options.sequence_length)
        source = open_model(folder / "model", torch.device("cpu"), torch.float32)
        ids = torch.randint(0, 1024, (options.samples, options.sequence_length))
        stream = Stream(source, ids, max(1, 8192 // options.sequence_length))
        path, entering = folder / "stream.safetensors", stream.hidden

        def again() -> None:
            stream.hidden = entering
            with source.open_block(0) as block:
                stream.advance(block, 0)

        pieces: dict[str, Callable[[], object]] = {
            "keep": lambda: write_batches(path, {"s": stream.hidden}),
            "again": again,
            "read": lambda: read_batches(path, {"s": stream.hidden}),
        }
        seconds: dict[str, list[float]] = {name: [] for name in pieces}
        for _ in range(options.repeats):
            for piece, work in pieces.items():
                began = time.perf_counter()
                work()
                seconds[piece].append(time.perf_counter() - began)
        size = path.stat().st_size / 1e6
    median = {piece: statistics.median(times) for piece, times in seconds.items()}
    print(
        f"{size:.0f} MB: "
        + ", ".join(f"{piece} {seconds:.2f} s" for piece, seconds in median.items())
        + f"; keeping costs {median['keep'] / median['again']:.0%} of a pass"
    )


if __name__ == "__main__":
    main()
