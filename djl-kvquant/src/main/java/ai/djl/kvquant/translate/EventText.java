/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

/**
 * Writes events of text/event-stream.
 *
 * <p>What keeps a silent stream alive is the beginning of its next event, then white space in front
 * of the event's JSON. A comment, the usual means, is more than some clients take: DJL's own hands
 * every line that is no event to its parser of JSON.
 */
final class EventText {

    private static final String BEGIN = "data: ";
    private static final String END = "\n\n";

    private boolean begun;

    /** A whole event, or the rest of the one that has begun. */
    String event(String data) {
        String event = (begun ? "" : BEGIN) + data + END;
        begun = false;
        return event;
    }

    String keepAlive() {
        String text = begun ? " " : BEGIN;
        begun = true;
        return text;
    }
}
