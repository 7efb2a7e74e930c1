/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.HashSet;
import java.util.Set;
import java.util.UUID;

/**
 * The sequences of one search, freed when the manager of its input ids is closed. Its owner's lock
 * guards all but the manager.
 */
final class HandleSession implements AutoCloseable {

    private final String uid = UUID.randomUUID().toString();
    private final SequenceHandles owner;

    /** The handles in use. */
    final Set<Integer> handles = new HashSet<>();

    /** What the last call returned in place of keys and values. */
    NDArray returned;

    /** Set once the manager is closed. */
    boolean closed;

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

    void closeReturned() {
        if (returned != null) {
            returned.close();
            returned = null;
        }
    }

    @Override
    public void close() {
        owner.release(this);
    }
}
