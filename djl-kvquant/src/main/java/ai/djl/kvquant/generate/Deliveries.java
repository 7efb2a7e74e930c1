/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;

/**
 * Tells listeners that no thread waits for what became of their requests: one thread for all, while
 * there is something to tell, so that text is made beside the decoding and in order.
 */
final class Deliveries {

    private static final int IDLE_SECONDS = 1;
    private static final int CLOSE_SECONDS = 60;

    private final ThreadPoolExecutor executor =
            new ThreadPoolExecutor(
                    1,
                    1,
                    IDLE_SECONDS,
                    TimeUnit.SECONDS,
                    new LinkedBlockingQueue<>(),
                    this::thread);
    private volatile Thread thread;

    Deliveries() {
        executor.allowCoreThreadTimeOut(true);
    }

    private Thread thread(Runnable work) {
        Thread created = new Thread(work, "kvquant-deliveries");
        created.setDaemon(true);
        thread = created;
        return created;
    }

    void run(Runnable delivery) {
        executor.execute(delivery);
    }

    /** Waits until all is told, unless a listener calls it, for which nobody can wait. */
    void close() {
        executor.shutdown();
        if (Thread.currentThread() == thread) {
            return;
        }
        try {
            executor.awaitTermination(CLOSE_SECONDS, TimeUnit.SECONDS);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }
}
