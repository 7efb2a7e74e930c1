# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
"""Operators on a cache, on CUDA against the portable ones of the CPU. Needs torch 2.7 or later, numpy and a GPU.

    python test_cuda_cache.py DIRECTORY [--small] [--emulated] [--only TEXT] [--jobs N]

DIRECTORY holds libkvquant_cpu.so and libkvquant_cuda.so; without a GPU, --emulated, libkvquant_emulated.so instead of
the latter. What is compared, and how: cuda_checks.py; with what: cases_*.py.
"""
import argparse
import concurrent.futures
import multiprocessing
import os
import sys

import torch

import cases_codebook
import cases_formats
import cases_int
import cases_latent
import cases_rotated
import cases_sparse
from cuda_checks import emulate, worst


def all_cases():
    for module in (cases_formats, cases_int, cases_rotated, cases_latent, cases_codebook, cases_sparse):
        yield from module.cases()


def small_cases():
    yield from cases_formats.small_cases()
    yield from cases_sparse.small_cases()


def load(directory, emulated):
    torch.set_num_threads(1)  # cases run beside each other, and theirs are small tensors
    for library in ("libkvquant_cpu.so", "libkvquant_emulated.so" if emulated else "libkvquant_cuda.so"):
        torch.ops.load_library(f"{directory}/{library}")
    if emulated:
        emulate()
    torch.ops.kvquant.configure(torch.tensor([-1, 0], dtype=torch.int32))  # the portable variant


def outcome(case):
    """What went wrong, None if nothing did, and the largest errors so far in this process."""
    try:
        case.run()
        return case.name, None, worst
    except Exception as error:  # whatever it is, the other cases are run
        return case.name, f"{type(error).__name__}: {error}", worst


def outcomes(cases, jobs, *libraries):
    if jobs == 1:
        load(*libraries)
        yield from map(outcome, cases)
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes: numpy's threads would get in each other's way
    spawn = multiprocessing.get_context("spawn")  # a process that has used CUDA cannot fork
    with concurrent.futures.ProcessPoolExecutor(jobs, spawn, load, libraries) as pool:
        for done in concurrent.futures.as_completed([pool.submit(outcome, case) for case in cases]):
            yield done.result()


def main():
    parser = argparse.ArgumentParser(description="Checks the CUDA operators on a cache against the portable ones.")
    parser.add_argument("directory", help="folder of libkvquant_cpu.so and libkvquant_cuda.so")
    parser.add_argument("--emulated", action="store_true", help="runs kernels on the CPU: libkvquant_emulated.so")
    parser.add_argument("--small", action="store_true", help="few cases of few tokens, for compute-sanitizer")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains TEXT")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that share the cases")
    args = parser.parse_args()
    cases = [case for case in (small_cases() if args.small else all_cases()) if args.only in case.name]
    failed, largest = 0, {}
    for name, problem, errors in outcomes(cases, args.jobs, os.path.abspath(args.directory), args.emulated):
        if problem:
            failed += 1
            print(f"FAILED {name}: {problem}", flush=True)
        for what, error in errors.items():
            largest[what] = max(largest.get(what, 0.0), error)
    print(f"{'emulator' if args.emulated else torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("largest errors: " + ", ".join(f"{what} {error:.1e}" for what, error in sorted(largest.items())))
    print(f"{len(cases) - failed} passed, {failed} failed")
    sys.exit(1 if failed or not cases else 0)


if __name__ == "__main__":
    main()
