/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Which variant of the operators runs: the best one that this processor has, chosen once, unless a test asks for
// another.
#pragma once

namespace kvquant {

enum class Variant : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

/// The best variant that was built and that this processor can run.
Variant best_variant();

Variant current_variant();

/// Selects a variant; false if this processor or this build lacks it.
bool use_variant(Variant variant);

}  // namespace kvquant
