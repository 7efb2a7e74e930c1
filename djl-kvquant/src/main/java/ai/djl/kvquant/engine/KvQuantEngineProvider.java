/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.engine;

import ai.djl.engine.Engine;
import ai.djl.engine.EngineProvider;

/** Makes the engine {@code KvQuant} known to DJL; found by {@link java.util.ServiceLoader}. */
public final class KvQuantEngineProvider implements EngineProvider {

    /** {@inheritDoc} */
    @Override
    public String getEngineName() {
        return KvQuantEngine.ENGINE_NAME;
    }

    /** {@inheritDoc} */
    @Override
    public int getEngineRank() {
        return KvQuantEngine.RANK;
    }

    /** {@inheritDoc} */
    @Override
    public Engine getEngine() {
        return Holder.ENGINE;
    }

    /** Created at first use: DJL asks every provider for its name, few for their engine. */
    private static final class Holder {
        static final Engine ENGINE = new KvQuantEngine();
    }
}
