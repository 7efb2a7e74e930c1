/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.HashSet;
import java.util.Set;
import java.util.UUID;

/**
 * The sequences of one search, freed when the manager of its input ids is closed. Its owner's lock
 * guards what is not private.
 */
final class HandleSession implements AutoCloseable {

    private final String uid = UUID.randomUUID().toString();
    private final SequenceHandles owner;

    /** The handles in use. */
    final Set<Integer> handles = new HashSet<>();

    /** Set once the manager is closed. */
    boolean closed;

    /**
     * What the last two calls returned in place of keys and values. DJL's searches never close what
     * they are done with, and look at the shape of what they passed on last.
     */
    private final Deque<NDArray> returned = new ArrayDeque<>();

    private NDManager manager;

    HandleSession(SequenceHandles owner) {
        this.owner = owner;
    }

    /** Lets a manager free the sequences, and no other. */
    void attach(NDManager next) {
        if (next != manager) {
            next.attachInternal(uid, this);
            detach();
            manager = next;
        }
    }

    void detach() {
        if (manager != null) {
            manager.detachInternal(uid);
            manager = null;
        }
    }

    /** Closes what was returned before the last call. */
    synchronized void returned(NDArray array) {
        if (returned.size() == 2) {
            returned.removeFirst().close();
        }
        returned.addLast(array);
    }

    synchronized void closeReturned() {
        returned.forEach(NDArray::close);
        returned.clear();
    }

    @Override
    public void close() {
        owner.release(this);
    }
}
