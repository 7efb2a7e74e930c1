/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import java.time.Duration;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Tells listeners that no thread waits for what became of their requests: one thread for all, while
 * there is something to tell, so that text is made beside the decoding and in order.
 */
final class Deliveries {

    private static final Logger logger = LoggerFactory.getLogger(Deliveries.class);
    private static final int IDLE_SECONDS = 1;

    private final ThreadPoolExecutor executor =
            new ThreadPoolExecutor(
                    1,
                    1,
                    IDLE_SECONDS,
                    TimeUnit.SECONDS,
                    new LinkedBlockingQueue<>(),
                    this::thread);
    private final Duration pulse;
    private final Duration patience;
    private final Duration closeLimit;
    private volatile Thread thread;

    Deliveries() {
        this(Duration.ofSeconds(1), Duration.ofSeconds(5), Duration.ofSeconds(60));
    }

    /**
     * Creates the thread's queue.
     *
     * @param pulse how long {@link #runLater} waits
     * @param patience how long closing waits for listeners before it says so
     * @param closeLimit how long closing waits for listeners at most
     */
    Deliveries(Duration pulse, Duration patience, Duration closeLimit) {
        this.pulse = pulse;
        this.patience = patience;
        this.closeLimit = closeLimit;
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

    /** Runs it after a pulse; not at all once this is closed, which refuses it. */
    void runLater(Runnable delivery) {
        CompletableFuture.delayedExecutor(pulse.toMillis(), TimeUnit.MILLISECONDS, executor)
                .execute(delivery);
    }

    /** Waits until all is told, unless a listener calls it, for which nobody can wait. */
    void close() {
        executor.shutdown();
        if (Thread.currentThread() == thread) {
            return;
        }
        try {
            awaitListeners();
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    private void awaitListeners() throws InterruptedException {
        if (executor.awaitTermination(patience.toMillis(), TimeUnit.MILLISECONDS)) {
            return;
        }
        logger.warn(
                "Closing waits up to {} seconds for listeners of requests, of which one is busy;"
                        + " listeners must not wait.",
                closeLimit.toSeconds());
        Duration rest = closeLimit.minus(patience);
        if (!executor.awaitTermination(rest.toMillis(), TimeUnit.MILLISECONDS)) {
            logger.warn(
                    "A listener has not returned within {} seconds; {} deliveries behind it come"
                            + " after closing, if ever.",
                    closeLimit.toSeconds(),
                    executor.getQueue().size());
        }
    }
}
