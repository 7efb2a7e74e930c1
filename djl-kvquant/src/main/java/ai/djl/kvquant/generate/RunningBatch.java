/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.generate;

import ai.djl.kvquant.cache.CacheFullException;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.IntStream;

/** Requests that are decoded together, one row each. */
final class RunningBatch {

    private final NextTokens next;
    private final List<ScheduledRequest> requests = new ArrayList<>();
    private DecodingBatch batch;

    RunningBatch(int vocabularySize) {
        next = new NextTokens(vocabularySize);
    }

    int size() {
        return requests.size();
    }

    boolean isEmpty() {
        return requests.isEmpty();
    }

    List<ScheduledRequest> requests() {
        return requests;
    }

    /** Takes over a batch of one row; an error ends its request. */
    void add(ScheduledRequest request, DecodingBatch other) {
        try {
            if (batch == null) {
                batch = other;
            } else {
                batch.add(other);
            }
            requests.add(request);
        } catch (RuntimeException | Error e) {
            other.close();
            request.fail(e);
            request.report(null);
        }
    }

    /** Feeds each row its next token. */
    void step() {
        batch.step(requests.stream().mapToInt(ScheduledRequest::nextToken).toArray());
        requests.forEach(ScheduledRequest::stepped);
    }

    /**
     * Feeds each row its next token on its own, so that an error ends its own request only. A row
     * without room stays as it is.
     */
    void stepOneByOne() {
        List<ScheduledRequest> all = List.copyOf(requests);
        for (ScheduledRequest request : all) {
            DecodingBatch alone = requests.size() == 1 ? batch : take(request);
            try {
                alone.step(new int[] {request.nextToken()});
                request.stepped();
            } catch (CacheFullException e) {
                // Its next step finds out again, and then makes room.
            } catch (RuntimeException | Error e) {
                request.fail(e);
            }
            if (alone != batch) {
                add(request, alone);
            }
        }
    }

    /** Chooses a token for each row that was fed all tokens chosen before. */
    void choose() {
        next.read(batch, requests.stream().allMatch(r -> r.isPlainGreedy() || !r.isChoosing()));
        for (int i = 0; i < requests.size(); ++i) {
            if (requests.get(i).isChoosing()) {
                requests.get(i).choose(next, i);
            }
        }
    }

    ScheduledRequest youngest() {
        ScheduledRequest youngest = requests.get(0);
        for (ScheduledRequest request : requests) {
            youngest = request.arrival() > youngest.arrival() ? request : youngest;
        }
        return youngest;
    }

    /** Takes a request out, with its cache; it is not the only one. */
    DecodingBatch take(ScheduledRequest request) {
        int index = requests.indexOf(request);
        DecodingBatch taken = batch.take(index);
        requests.remove(index);
        return taken;
    }

    CacheUsage usage() {
        return batch.usage();
    }

    /** Releases the cache of the requests that end. */
    void dropEnding() {
        int[] rest =
                IntStream.range(0, requests.size())
                        .filter(i -> !requests.get(i).isEnding())
                        .toArray();
        if (rest.length == 0) {
            // Before they are gone: if that fails, they are to hear of it.
            closeBatch();
            requests.clear();
        } else {
            batch.keep(rest);
            requests.removeIf(ScheduledRequest::isEnding);
        }
    }

    /** Releases all. */
    void close() {
        requests.clear();
        closeBatch();
    }

    private void closeBatch() {
        if (batch != null) {
            DecodingBatch closing = batch;
            batch = null;
            closing.close();
        }
    }
}
