/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import java.util.List;

/**
 * A token that was chosen for a sequence.
 *
 * @param token the token id
 * @param logProb its log-probability, NaN unless asked for
 * @param alternatives the most probable tokens, best first; empty unless asked for
 * @param nanos when it was chosen, of {@link System#nanoTime}
 */
record Choice(int token, float logProb, List<TokenLogProb> alternatives, long nanos) {}
