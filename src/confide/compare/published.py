"""Figures of other people: shown beside the measured ones, always as "published, not measured here".

A figure of ours never stands here and a figure of this table never becomes a `Record`.
"""

from __future__ import annotations

from dataclasses import dataclass

#: How every figure of this file is marked.
MARK = "published, not measured here"


@dataclass(frozen=True, slots=True)
class Published:
    """One figure of somebody else.

    Args:
        technique: what it is about.
        setting: what was run on what.
        value: the figure, as its source states it.
        source: where it was published.
    """

    technique: str
    setting: str
    value: str
    source: str


PUBLISHED: tuple[Published, ...] = (
    Published(
        "Enclave (Intel TDX, SGX with AMX)",
        "Llama 2, 7 to 70 billion parameters, on a processor",
        "less than 10 % of throughput, less than 20 % of latency",
        "arXiv 2509.18886, abstract",
    ),
    Published(
        "Enclave with a graphics processor (NVIDIA H100)",
        "Llama 2",
        "4 to 8 % of throughput, less with larger batches",
        "arXiv 2509.18886, abstract",
    ),
    Published(
        "Enclave (Intel SGX under Gramine)",
        "PyTorch inference",
        "25 % overhead; 8 % with a patched libgomp",
        "Gramine, Documentation/performance.rst",
    ),
    Published(
        "Enclave (Intel SGX under Gramine)",
        "system calls that copy buffers",
        "15 to 50 % overhead; pipes 1 to 10 %; fork up to 1000 times slower",
        "Gramine, Documentation/performance.rst",
    ),
    Published(
        "Enclave (Intel SGX under Gramine)",
        "one user's translation model",
        "495 s in place of 294 s (1.68 times); start 64 s in place of less than 1 s",
        "gramineproject/gramine, issue 1079",
    ),
    Published(
        "Enclave with an oblivious tokenizer",
        "time to the first token of a language model",
        "4.5 % more; the naive way 13 times",
        "arXiv 2606.17358, abstract",
    ),
)
