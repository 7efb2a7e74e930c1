/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests.contract;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * Whether what is stored in pages is what each format's definition says. Subclasses change the
 * definition to prove that the tests would notice.
 */
class StoredTokens {

    /** Tokens at both ends of the stored run that are checked. */
    private static final int ENDS = 66;

    /** RoPE from two fp32 table entries. */
    private static final double ROPE_ERROR = 1e-6;

    private final Scenario scenario;
    private final Layer layer;
    private final PageFormat keys;
    private final PageFormat values;
    private final StaticQuantizer staticKeys;
    private final NormQuantizer normValues;
    private final CodebookQuantizer codebookKeys;
    private final CodebookQuantizer codebookValues;
    private final List<String> problems = new ArrayList<>();
    private int checked;

    StoredTokens(Scenario scenario) {
        this(scenario, scenario.layer);
    }

    /** Against another layer's definition. */
    StoredTokens(Scenario scenario, Layer layer) {
        this.scenario = scenario;
        this.layer = layer;
        keys = PageFormat.keys(layer);
        values = PageFormat.values(layer);
        staticKeys = layer.keys().isStatic() ? new StaticQuantizer(keys) : null;
        normValues = layer.values().hasNorms() ? normQuantizer(values) : null;
        codebookKeys = layer.keys().hasCodebook() ? new CodebookQuantizer(keys) : null;
        codebookValues = layer.values().hasCodebook() ? new CodebookQuantizer(values) : null;
    }

    NormQuantizer normQuantizer(PageFormat format) {
        return new NormQuantizer(format);
    }

    /** What is wrong with the tokens at both ends of each sequence's pages. */
    final List<String> problems() {
        CacheState state = scenario.state;
        for (int b = 0; b < state.batch; ++b) {
            int stored = state.quantized(b, state.lengths[b] + 1);
            for (int t = 0; t < stored; ++t) {
                if (t < ENDS || t >= stored - ENDS) {
                    check(b, t);
                    ++checked;
                }
            }
        }
        return problems;
    }

    /** Tokens that were checked. */
    final int checked() {
        return checked;
    }

    /** Codes that were checked and that fp32 could have rounded otherwise. */
    final long codes() {
        return (staticKeys == null ? 0 : staticKeys.codes())
                + (normValues == null ? 0 : normValues.codes())
                + (codebookKeys == null ? 0 : codebookKeys.codes())
                + (codebookValues == null ? 0 : codebookValues.codes());
    }

    /** Codes that fp32 did round otherwise. */
    final long deviations() {
        return (staticKeys == null ? 0 : staticKeys.deviations())
                + (normValues == null ? 0 : normValues.deviations())
                + (codebookKeys == null ? 0 : codebookKeys.deviations())
                + (codebookValues == null ? 0 : codebookValues.deviations());
    }

    private void check(int b, int token) {
        float[] row = scenario.rows(b, token, token + 1);
        int begin = layer.heads() * layer.headDim();
        double[] k = asStored(layer.keys(), row, begin);
        double[] v = asStored(layer.values(), row, begin + layer.channels());
        ByteBuffer page = scenario.state.page(b, token);
        String key = keyProblem(k, token, page);
        String value = problem(values, v, page, token % 64);
        if (key != null || value != null) {
            String what = key != null ? "key: " + key : "value: " + value;
            problems.add(scenario.point + " row " + b + " token " + token + " " + what);
        }
    }

    /** One side of a row; as halves if codes are made of it or the window may have held it. */
    private double[] asStored(Side side, float[] row, int begin) {
        double[] x = new double[layer.channels()];
        for (int i = 0; i < x.length; ++i) {
            x[i] = row[begin + i];
        }
        return side.isQuantized() || layer.window() > 0 ? Half.round(x) : x;
    }

    private String keyProblem(double[] k, int token, ByteBuffer page) {
        if (staticKeys != null) {
            Rope rope = layer.preRope() ? null : scenario.state.rope;
            return staticKeys.problem(k, rope, token, page);
        }
        if (!layer.preRope()) {
            scenario.state.rope.turn(k, token);
        }
        return problem(keys, k, page, token % 64);
    }

    private String problem(PageFormat format, double[] x, ByteBuffer page, int slot) {
        Side side = format.side;
        double[] rotated = Rotation.of(layer.headDim(), side.rotationHeads()).apply(x);
        if (side.isAffine()) {
            return new Quantizer(format).problem(rotated, page, slot);
        }
        if (side.hasNorms()) {
            return normValues.problem(rotated, page, slot);
        }
        if (side.hasCodebook()) {
            return (format == keys ? codebookKeys : codebookValues).problem(x, page, slot);
        }
        return elementProblem(format, x, page, slot);
    }

    private String elementProblem(PageFormat format, double[] x, ByteBuffer page, int slot) {
        double[] actual = format.read(page, slot);
        double largest = Arrays.stream(x).map(Math::abs).max().orElse(0);
        for (int c = 0; c < x.length; ++c) {
            double allowed = format == keys ? ROPE_ERROR * largest : 0;
            boolean same =
                    format.side.format() == 1
                            ? actual[c] >= Half.round(x[c] - allowed)
                                    && actual[c] <= Half.round(x[c] + allowed)
                            : Math.abs(actual[c] - x[c]) <= allowed;
            if (!same) {
                return actual[c] + " instead of " + x[c];
            }
        }
        return null;
    }
}
