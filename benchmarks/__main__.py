"""Run every benchmark."""

from benchmarks import divergence, sampling

divergence.main()
sampling.main()
