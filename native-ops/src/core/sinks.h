/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
// Which tokens are sinks: the first ones, or, as RotateKV has it (section 3.3), the owners of the prompt's largest
// entries.
#pragma once
#include "cache.h"

namespace kvquant {

/// Brings the sinks of sequence b up to date with its new tokens and keeps exact copies of those among them that are
/// new; a token that is no longer an owner gives up its slot (its page already holds it).
void update_sinks(const LayerCache& cache, const NewTokens& tokens, int64_t b);

}  // namespace kvquant
