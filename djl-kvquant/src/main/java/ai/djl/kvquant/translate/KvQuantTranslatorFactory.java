/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import ai.djl.Model;
import ai.djl.modality.Input;
import ai.djl.modality.Output;
import ai.djl.modality.nlp.generate.CausalLMOutput;
import ai.djl.ndarray.NDList;
import ai.djl.translate.NoopTranslator;
import ai.djl.translate.Translator;
import ai.djl.translate.TranslatorFactory;
import ai.djl.util.Pair;
import java.io.IOException;
import java.io.Serializable;
import java.io.UncheckedIOException;
import java.lang.reflect.Type;
import java.util.Map;
import java.util.Set;

/**
 * Creates the translators of models of the engine {@code KvQuant}: (String, String) generates text,
 * (Input, Output) answers requests of DJL Serving in the LMI and the OpenAI chat schema, (NDList,
 * CausalLMOutput) is for DJL's TextGenerator, (NDList, NDList) is the plain block.
 *
 * <p>DJL chooses a translator before it knows the engine, hence criteria name this factory: {@code
 * optTranslatorFactory(new KvQuantTranslatorFactory())}.
 */
public final class KvQuantTranslatorFactory implements TranslatorFactory, Serializable {

    private static final long serialVersionUID = 1L;

    /** Creates a factory. */
    public KvQuantTranslatorFactory() {}

    /** {@inheritDoc} */
    @Override
    public Set<Pair<Type, Type>> getSupportedTypes() {
        return Set.of(
                new Pair<>(String.class, String.class),
                new Pair<>(Input.class, Output.class),
                new Pair<>(NDList.class, CausalLMOutput.class),
                new Pair<>(NDList.class, NDList.class));
    }

    /** {@inheritDoc} */
    @Override
    @SuppressWarnings("unchecked")
    public <I, O> Translator<I, O> newInstance(
            Class<I> input, Class<O> output, Model model, Map<String, ?> arguments) {
        if (input == NDList.class && output == NDList.class) {
            return (Translator<I, O>) new NoopTranslator();
        }
        if (input == NDList.class && output == CausalLMOutput.class) {
            return (Translator<I, O>) CausalLmTranslator.create(model);
        }
        boolean serving = input == Input.class && output == Output.class;
        if (!serving && (input != String.class || output != String.class)) {
            throw new IllegalArgumentException(
                    "KvQuantTranslatorFactory has no translator from "
                            + input.getName()
                            + " to "
                            + output.getName()
                            + "; use (String, String), (Input, Output), (NDList,"
                            + " CausalLMOutput) or (NDList, NDList).");
        }
        try {
            return (Translator<I, O>)
                    (serving
                            ? ServingTranslator.create(model, arguments)
                            : TextTranslator.create(model, arguments));
        } catch (IOException e) {
            // DJL would report a TranslateException as a model that can not be found.
            throw new UncheckedIOException(e.getMessage(), e);
        }
    }
}
