/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.calibrate;

import static org.junit.jupiter.api.Assertions.assertEquals;

import ai.djl.kvquant.cache.CacheGeometry;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import java.util.Random;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Against what a small error of one score does to the residual stream. */
class KeyImportanceTest {

    private static final int HEADS = 4;
    private static final int KV_HEADS = 2;
    private static final int D = 8;
    private static final int HIDDEN = 6;
    private static final int TOKENS = 40;
    private static final int STRIDE = 4;
    private static final int RECENT = TOKENS / 8;
    private static final double[] FREQUENCIES = {1, 0.3, 0.1, 0.01};
    private static final double SCALE = 0.4;

    private final NDManager manager = TinySamples.MANAGER.newSubManager();
    private final Random random = new Random(3);
    private final float[][] rows = matrix(TOKENS, (HEADS + 2 * KV_HEADS) * D);
    private final float[][] projection = matrix(HIDDEN, HEADS * D);
    private final double[] residual = random.doubles(TOKENS, 0.5, 2).toArray();

    private float[][] matrix(int n, int m) {
        float[][] matrix = new float[n][m];
        for (float[] row : matrix) {
            for (int i = 0; i < m; ++i) {
                row[i] = (float) random.nextGaussian();
            }
        }
        return matrix;
    }

    @AfterEach
    void close() {
        manager.close();
    }

    /** Elements of a head after RoPE. */
    private double[] turned(int token, int head, double sign) {
        double[] x = new double[D];
        for (int i = 0; i < D; ++i) {
            x[i] = rows[token][head * D + i];
        }
        return turn(x, sign * token);
    }

    private static double[] turn(double[] x, double position) {
        double[] y = new double[D];
        for (int i = 0; i < D / 2; ++i) {
            double cos = Math.cos(position * FREQUENCIES[i]);
            double sin = Math.sin(position * FREQUENCIES[i]);
            y[i] = x[i] * cos - x[i + D / 2] * sin;
            y[i + D / 2] = x[i + D / 2] * cos + x[i] * sin;
        }
        return y;
    }

    /** The part of the residual stream that a query's head adds, with one score off by error. */
    private double[] added(int query, int head, int token, double error) {
        int kv = HEADS + head / (HEADS / KV_HEADS);
        double[] q = turned(query, head, 1);
        double[] weights = new double[query + 1];
        double total = 0;
        for (int t = 0; t <= query; ++t) {
            double score = t == token ? error : 0;
            double[] k = turned(t, kv, 1);
            for (int i = 0; i < D; ++i) {
                score += SCALE * q[i] * k[i];
            }
            weights[t] = Math.exp(score);
            total += weights[t];
        }
        double[] out = new double[HIDDEN];
        for (int t = 0; t <= query; ++t) {
            for (int row = 0; row < HIDDEN; ++row) {
                for (int i = 0; i < D; ++i) {
                    double value = rows[t][(kv + KV_HEADS) * D + i];
                    out[row] += weights[t] / total * projection[row][head * D + i] * value;
                }
            }
        }
        return out;
    }

    private double cost(int query, int head, int token) {
        double step = 1e-4;
        double[] more = added(query, head, token, step);
        double[] less = added(query, head, token, -step);
        double square = 0;
        for (int i = 0; i < HIDDEN; ++i) {
            double slope = (more[i] - less[i]) / (2 * step);
            square += slope * slope;
        }
        return square / residual[query];
    }

    private KeyImportance importance(boolean recent) {
        CacheGeometry geometry =
                new CacheGeometry(1, HEADS, KV_HEADS, D, SCALE, FREQUENCIES, TOKENS);
        float[] cos = new float[TOKENS * D / 2];
        float[] sin = new float[TOKENS * D / 2];
        for (int i = 0; i < cos.length; ++i) {
            cos[i] = (float) Math.cos(i / (D / 2) * FREQUENCIES[i % (D / 2)]);
            sin[i] = (float) Math.sin(i / (D / 2) * FREQUENCIES[i % (D / 2)]);
        }
        Shape angles = new Shape(TOKENS, 1, D / 2);
        NDArray qkv = manager.create(rows).reshape(TOKENS, HEADS + 2 * KV_HEADS, D);
        LayerSamples samples =
                LayerSamples.of(
                        geometry, qkv, manager.create(cos, angles), manager.create(sin, angles));
        NDArray columns = manager.create(projection).reshape(HIDDEN, HEADS, D).transpose(1, 2, 0);
        NDArray gram = columns.matMul(columns.transpose(0, 2, 1));
        float[] squares = new float[TOKENS];
        for (int t = 0; t < TOKENS; ++t) {
            squares[t] = (float) residual[t];
        }
        KeyImportance importance =
                new KeyImportance(geometry, recent, 1, TOKENS - Calibrator.SKIPPED);
        importance.add(samples, gram, manager.create(squares));
        return importance;
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void costIsWhatASmallErrorDoesToTheResidualStream(boolean recent) {
        KeyImportance importance = importance(recent);
        for (int kv = 0; kv < KV_HEADS; ++kv) {
            double[] tokens = new double[TOKENS];
            double[][] turned = new double[D][D];
            double[][] seen = new double[D][D];
            for (int head = 2 * kv; head < 2 * kv + 2; ++head) {
                for (int query = 0; query < TOKENS; query += STRIDE) {
                    double[] q = turned(query, head, 1);
                    for (int t = Calibrator.SKIPPED; t <= query - (recent ? RECENT : 0); ++t) {
                        double cost = cost(query, head, t);
                        tokens[t] += cost;
                        addOuter(turned, q, cost);
                        addOuter(seen, turn(q, -t), cost);
                    }
                }
            }
            for (int t = Calibrator.SKIPPED; t < TOKENS; ++t) {
                double found = importance.tokens()[kv][t - Calibrator.SKIPPED];
                assertEquals(tokens[t], found, 1e-5 + 1e-4 * tokens[t], "token " + t);
            }
            assertClose(turned, importance.turned()[kv]);
            assertClose(seen, importance.seen()[kv]);
        }
    }

    private static void addOuter(double[][] sum, double[] x, double factor) {
        for (int i = 0; i < D; ++i) {
            for (int j = 0; j < D; ++j) {
                sum[i][j] += factor * x[i] * x[j];
            }
        }
    }

    private static void assertClose(double[][] expected, double[][] found) {
        double size = 0;
        for (int i = 0; i < D; ++i) {
            size += expected[i][i];
        }
        for (int i = 0; i < D; ++i) {
            for (int j = 0; j < D; ++j) {
                assertEquals(expected[i][j], found[i][j], 1e-4 * size, i + ", " + j);
            }
        }
    }
}
