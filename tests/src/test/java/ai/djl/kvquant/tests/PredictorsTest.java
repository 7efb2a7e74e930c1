/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.djl.inference.Predictor;
import ai.djl.kvquant.engine.KvQuantBlock;
import ai.djl.kvquant.generate.Cancellation;
import ai.djl.kvquant.generate.Generator;
import ai.djl.repository.zoo.ZooModel;
import ai.djl.translate.TranslateException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Predictors of several threads, which share the running batch of their model. */
class PredictorsTest {

    private static final int PREDICTORS = 8;

    private final ExecutorService threads = Executors.newCachedThreadPool();
    @TempDir Path directory;

    @AfterEach
    void endThreads() {
        threads.shutdownNow();
    }

    private ZooModel<String, String> load() throws Exception {
        return SmallModel.in(directory)
                .tokenizer()
                .criteria(String.class)
                .optOption("kv_cache_tokens", "2048")
                .optArgument("max_new_tokens", 30)
                .optArgument("ignore_eos", true)
                .build()
                .loadModel();
    }

    private static String prompt(int i) {
        StringBuilder text = new StringBuilder();
        for (int token : SmallModel.prompt(5 + 11 * i, 40 + i)) {
            text.append(text.isEmpty() ? "w" : " w").append(token);
        }
        return text.toString();
    }

    private static String predict(ZooModel<String, String> model, String prompt)
            throws TranslateException {
        try (Predictor<String, String> predictor = model.newPredictor()) {
            return predictor.predict(prompt);
        }
    }

    @Test
    void eachGetsTheTextThatItWouldGetAlone() throws Exception {
        List<String> expected = new ArrayList<>();
        try (ZooModel<String, String> model = load()) {
            for (int i = 0; i < PREDICTORS; ++i) {
                expected.add(predict(model, prompt(i)));
            }
        }
        try (ZooModel<String, String> model = load()) {
            List<Future<String>> texts = new ArrayList<>();
            for (int i = 0; i < PREDICTORS; ++i) {
                String prompt = prompt(i);
                texts.add(threads.submit(() -> predict(model, prompt)));
            }
            for (int i = 0; i < PREDICTORS; ++i) {
                assertEquals(expected.get(i), texts.get(i).get(), "predictor " + i);
            }
        }
    }

    @Test
    void closingTheModelEndsWhatIsGenerated() throws Exception {
        ZooModel<String, String> model = load();
        Generator generator = new Generator(((KvQuantBlock) model.getBlock()).scheduler(), null);
        CountDownLatch running = new CountDownLatch(PREDICTORS);
        List<Future<?>> calls = new ArrayList<>();
        for (int i = 0; i < PREDICTORS; ++i) {
            int[] prompt = SmallModel.prompt(5 + i, i);
            calls.add(
                    threads.submit(
                            () ->
                                    generator.generate(
                                            List.of(prompt),
                                            SmallModel.config(480),
                                            token -> {
                                                running.countDown();
                                                return true;
                                            },
                                            new Cancellation())));
        }
        running.await();
        model.close();
        int ended = 0;
        for (Future<?> call : calls) {
            try {
                call.get();
            } catch (ExecutionException e) {
                String message = e.getCause().getMessage();
                assertTrue(message.startsWith("The model was closed"), message);
                ++ended;
            }
        }
        assertTrue(ended > 0, "all had ended before the model was closed");
        assertThrows(
                IllegalStateException.class,
                () -> generator.generate(List.of(new int[] {1}), SmallModel.config(1)));
    }
}
