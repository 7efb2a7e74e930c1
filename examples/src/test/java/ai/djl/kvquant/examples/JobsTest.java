/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.examples;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;

/** Measurements share their items, each in a thread of its own. */
class JobsTest {

    private static final List<Integer> ITEMS = IntStream.range(0, 7).boxed().toList();

    /** Keeps what it is given, and which threads gave it. */
    private static final class Collecting implements AutoCloseable {
        private final List<Integer> items = new ArrayList<>();
        private final List<Thread> threads = new ArrayList<>();
        private boolean closed;

        void add(int item) {
            items.add(item);
            threads.add(Thread.currentThread());
        }

        void addAll(Collecting other) {
            items.addAll(other.items);
            threads.addAll(other.threads);
        }

        @Override
        public void close() {
            closed = true;
        }
    }

    @Test
    void itemsAreSharedAndAddedUp() {
        int[] done = {0};
        try (Jobs<Collecting> jobs = Jobs.of(3, Collecting::new)) {
            jobs.run(ITEMS, Collecting::add, () -> ++done[0]);
            Collecting all = jobs.merge(Collecting::addAll);
            assertEquals(List.of(0, 3, 6, 1, 4, 2, 5), all.items);
            assertEquals(3, all.threads.stream().distinct().count());
        }
        assertEquals(7, done[0]);
    }

    @Test
    void theyWorkAtTheSameTime() {
        CyclicBarrier all = new CyclicBarrier(3);
        try (Jobs<Collecting> jobs = Jobs.of(3, Collecting::new)) {
            jobs.run(
                    ITEMS.subList(0, 3),
                    (measurement, item) -> {
                        try {
                            all.await(1, TimeUnit.MINUTES);
                        } catch (Exception e) {
                            throw new IllegalStateException(e);
                        }
                    },
                    () -> {});
        }
    }

    @Test
    void oneThatFailsIsTold() {
        List<Collecting> made = new ArrayList<>();
        try (Jobs<Collecting> jobs =
                Jobs.of(
                        2,
                        () -> {
                            made.add(new Collecting());
                            return made.get(made.size() - 1);
                        })) {
            IllegalArgumentException e =
                    assertThrows(
                            IllegalArgumentException.class,
                            () ->
                                    jobs.run(
                                            ITEMS,
                                            (measurement, item) -> {
                                                if (item == 3) {
                                                    throw new IllegalArgumentException("three");
                                                }
                                            },
                                            () -> {}));
            assertEquals("three", e.getMessage());
        }
        assertTrue(made.stream().allMatch(each -> each.closed));
    }
}
