/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;

/**
 * Something a user does wrong and what they must be told.
 *
 * @param <T> what the wrong thing is done to
 * @param name what is wrong
 * @param action does it
 * @param type the exception
 * @param fragments parts of its message: what was asked, what is allowed, what to do
 */
record BadInput<T>(
        String name, Action<T> action, Class<? extends Exception> type, List<String> fragments) {

    /** Does something wrong to a model. */
    @FunctionalInterface
    interface Action<T> {
        void run(T subject) throws Exception;
    }

    static <T> BadInput<T> of(
            String name, Class<? extends Exception> type, Action<T> action, String... fragments) {
        return new BadInput<>(name, action, type, List.of(fragments));
    }

    void check(T subject) {
        Exception error = assertThrows(Exception.class, () -> action.run(subject), name);
        assertEquals(type, error.getClass(), error.toString());
        String message = String.valueOf(error.getMessage());
        for (String fragment : fragments) {
            assertTrue(message.contains(fragment), "no '" + fragment + "' in: " + message);
        }
        assertFalse(message.contains("\n"), "one line: " + message);
        assertTrue(message.endsWith(".") || message.endsWith("?"), "a sentence: " + message);
    }

    @Override
    public String toString() {
        return name;
    }
}
