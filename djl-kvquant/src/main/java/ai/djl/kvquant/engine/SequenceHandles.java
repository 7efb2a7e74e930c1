/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.kvquant.cache.CacheFullException;
import ai.djl.kvquant.cache.CacheSequence;
import ai.djl.kvquant.cache.KvCache;
import ai.djl.kvquant.generate.CacheUsage;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.Shape;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * Sequences under the names by which DJL's searches pass them on; thread-safe.
 *
 * <p>A search keeps past keys and values, reorders, repeats and cuts them, and never says which it
 * is done with. What it gets here in their place, FLOAT32 {@code [batch, 1, tokens, 1]}, repeats
 * the number of one sequence per row; 0 is none. The searches go forward only: what a call is not
 * given any more is freed, a sequence given once grows, one given several times is forked. With
 * {@code keep}, for callers who go back, nothing is freed before the session ends.
 */
final class SequenceHandles {

    /** Numbers are exact in FLOAT32 up to here. */
    private static final int LARGEST = 1 << 24;

    private final CausalRunner model;
    private final boolean keep;
    private final Map<Integer, Held> held = new HashMap<>();
    private int last;

    /** A sequence and what it is freed with. */
    private record Held(CacheSequence sequence, HandleSession session) {}

    /** The sequences of a call: those it was given, and those that it appends to. */
    private record Call(
            HandleSession session,
            Set<HandleSession> merged,
            Map<Integer, CacheSequence> taken,
            List<CacheSequence> rows) {}

    SequenceHandles(CausalRunner model, boolean keep) {
        this.model = model;
        this.keep = keep;
    }

    /** Runs a model by DJL's contract: logits, as many pairs as were given, hidden states. */
    NDList forward(NDList list) {
        CausalInputs inputs = new CausalInputs(list);
        model.check(inputs);
        NDManager owner = list.get(0).getManager();
        Call call = take(inputs);
        NDList states;
        int[] handles;
        try {
            // Not under the lock: a manager that is being closed waits for it.
            call.session.attach(owner);
            states = model.run(owner, inputs, call.rows);
            handles = give(call);
        } catch (CacheFullException e) {
            undo(call);
            throw new CacheFullException(
                    e.getMessage()
                            + " Sequences that DJL's searches hold until the managers of their"
                            + " input ids are closed: "
                            + size()
                            + ".",
                    e.fitsAlone());
        } catch (RuntimeException | Error e) {
            undo(call);
            throw e;
        }
        call.merged.forEach(HandleSession::detach);
        return outputs(call, inputs, states, handles);
    }

    private synchronized Call take(CausalInputs inputs) {
        Set<HandleSession> sessions = new LinkedHashSet<>();
        Set<Integer> given = new HashSet<>();
        for (int row = 0; row < inputs.batch(); ++row) {
            check(inputs, row);
            if (inputs.handle(row) != 0) {
                sessions.add(held.get(inputs.handle(row)).session);
                given.add(inputs.handle(row));
            }
        }
        if (!keep) {
            sessions.forEach(session -> freeAllBut(session, given));
        }
        HandleSession session =
                sessions.isEmpty() ? new HandleSession(this) : sessions.iterator().next();
        sessions.remove(session);
        Call call = new Call(session, sessions, new HashMap<>(), new ArrayList<>());
        for (int row = 0; row < inputs.batch(); ++row) {
            call.rows.add(sequence(call, inputs.handle(row)));
        }
        return call;
    }

    private void check(CausalInputs inputs, int row) {
        int handle = inputs.handle(row);
        Held parent = held.get(handle);
        if (handle != 0 && parent == null) {
            throw new IllegalStateException(
                    "Past keys and values of row "
                            + row
                            + " name a sequence that is not held any more: another call went on"
                            + " from where it was, or the manager of its input ids is closed. Load"
                            + " the model with the option keep_handles=true to go back.");
        }
        int length = parent == null ? 0 : parent.sequence.length();
        if (inputs.pastTokens(row) != length) {
            throw new IllegalArgumentException(
                    "The attention mask of row "
                            + row
                            + " shows "
                            + inputs.pastTokens(row)
                            + " past tokens, but the sequence has "
                            + length
                            + ". Show all of them; what is cached can not be hidden.");
        }
    }

    /** The sequence that a row appends to. */
    private CacheSequence sequence(Call call, int handle) {
        if (handle == 0) {
            return model.cache().newSequence();
        }
        Held parent = held.get(handle);
        if (keep || parent == null) {
            return (keep ? parent.sequence : call.taken.get(handle)).fork();
        }
        held.remove(handle);
        parent.session.handles.remove(handle);
        call.taken.put(handle, parent.sequence);
        return parent.sequence;
    }

    private void freeAllBut(HandleSession session, Set<Integer> given) {
        for (int handle : List.copyOf(session.handles)) {
            if (!given.contains(handle)) {
                held.remove(handle).sequence.close();
                session.handles.remove(handle);
            }
        }
    }

    /** Names what a call appended to. */
    private synchronized int[] give(Call call) {
        if (call.session.closed) {
            throw new IllegalStateException(
                    "The manager of the input ids was closed while they were computed; keep it open"
                            + " until the output is read.");
        }
        for (HandleSession other : call.merged) {
            for (int handle : other.handles) {
                held.put(handle, new Held(held.get(handle).sequence, call.session));
            }
            call.session.handles.addAll(other.handles);
            other.handles.clear();
        }
        return call.rows.stream().mapToInt(row -> hold(row, call.session)).toArray();
    }

    private int hold(CacheSequence sequence, HandleSession session) {
        do {
            last = last == LARGEST ? 1 : last + 1;
        } while (held.containsKey(last));
        held.put(last, new Held(sequence, session));
        session.handles.add(last);
        return last;
    }

    /** Gives back what a call was given, as it was. */
    private synchronized void undo(Call call) {
        for (CacheSequence row : call.rows) {
            if (call.session.closed || !call.taken.containsValue(row)) {
                row.close();
            }
        }
        if (!call.session.closed) {
            call.taken.forEach(
                    (handle, sequence) -> {
                        held.put(handle, new Held(sequence, call.session));
                        call.session.handles.add(handle);
                    });
        }
    }

    /** Logits, the handles as often as the caller has keys and values, hidden states. */
    private NDList outputs(Call call, CausalInputs inputs, NDList states, int[] handles) {
        NDManager owner = states.get(0).getManager();
        NDArray past = handleArray(owner, handles, inputs.pastColumns() + inputs.newTokens());
        if (!keep) {
            call.merged.forEach(HandleSession::closeReturned);
            call.session.returned(past);
        }
        NDList outputs = new NDList(states.get(0));
        int pairs = inputs.pairs() == 0 ? model.numLayers() : inputs.pairs();
        for (int i = 0; i < 2 * pairs; ++i) {
            outputs.add(past);
        }
        outputs.addAll(states.subNDList(1));
        return outputs;
    }

    /** Each row's handle in every column; the memory is that of one column. */
    private static NDArray handleArray(NDManager owner, int[] handles, long columns) {
        float[] values = new float[handles.length];
        for (int row = 0; row < values.length; ++row) {
            values[row] = handles[row];
        }
        // A copy in memory of libtorch's: what Java creates is freed with its array, views or not.
        try (NDArray created = owner.create(values, new Shape(values.length, 1, 1, 1));
                NDArray copy = created.duplicate()) {
            return copy.broadcast(new Shape(values.length, 1, columns, 1));
        }
    }

    /** Frees the sequences of a search that has ended. */
    synchronized void release(HandleSession session) {
        freeAllBut(session, Set.of());
        session.closed = true;
    }

    /** The number of sequences that searches hold. */
    synchronized int size() {
        return held.size();
    }

    /** What the sequences that searches hold take; what they share counts in each. */
    synchronized CacheUsage usage() {
        KvCache cache = model.cache();
        List<CacheSequence> all = held.values().stream().map(Held::sequence).toList();
        long tokens = all.stream().mapToLong(CacheSequence::length).sum();
        double read = all.stream().mapToDouble(s -> s.length() * cache.keyReads(s).total()).sum();
        return new CacheUsage(
                cache.bytes(all),
                tokens * cache.geometry().fp16BytesPerToken(),
                cache.bitsPerKey(all),
                cache.bitsPerValue(),
                read / Math.max(1, tokens),
                cache.options().dtype().name());
    }
}
