/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// What a GPU does beside its threads: copies to shared memory and products of warpgroups. Each is done at once or as
// late as somebody waits for it, by chance: who reads too early, or overwrites too early, is found out.
#pragma once
#include <cstdint>

namespace kvquant::emulator {

/// cp.async, its groups and cp.async.mbarrier.arrive.noinc, of the current thread.
void copy_async(void* to, const void* from, int bytes);
void commit_copies();
void wait_copies(int groups);
void arrive_copied(uint64_t* barrier);

/// mbarrier: phases of `count` arrivals and the bytes that were announced.
void set_arrivals(uint64_t* barrier, int count);
void arrive(uint64_t* barrier);
void expect_bytes(uint64_t* barrier, int bytes);
void wait_arrivals(uint64_t* barrier, int phase);

/// cp.async.bulk, which ends by telling the barrier.
void copy_bulk(void* to, const void* from, int bytes, uint64_t* barrier);

/// wgmma.m64n128k16: the current thread's share of c. a and b are descriptors as ptx.cuh makes them. Until
/// wait_products, c may be no numbers.
void warpgroup_mma(float (*c)[4], uint64_t a, uint64_t b, bool add, bool transposed);
void wait_products();

/// For block.cpp: forgets everything; does something that is under way, if there is anything; does all of the current
/// thread's copies; whether something is under way that nobody waited for.
void start_block();
void go_on();
void end_thread();
bool anything_left();

}  // namespace kvquant::emulator
