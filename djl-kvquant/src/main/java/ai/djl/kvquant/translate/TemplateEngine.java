/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import com.hubspot.jinjava.Jinjava;
import com.hubspot.jinjava.JinjavaConfig;
import com.hubspot.jinjava.LegacyOverrides;
import com.hubspot.jinjava.el.JinjavaInterpreterResolver;
import com.hubspot.jinjava.el.TruthyTypeConverter;
import com.hubspot.jinjava.interpret.Context;
import com.hubspot.jinjava.interpret.InterpreterFactory;
import com.hubspot.jinjava.interpret.JinjavaInterpreter;
import com.hubspot.jinjava.lib.fn.ELFunctionDefinition;
import java.util.Collection;
import java.util.Map;
import java.util.Properties;
import jinjava.de.odysseus.el.ExpressionFactoryImpl;
import jinjava.de.odysseus.el.tree.TreeBuilder;
import jinjava.javax.el.CompositeELResolver;
import jinjava.javax.el.ExpressionFactory;

/**
 * Jinjava, set up to mean what Jinja2 means as HuggingFace's chat templates use it.
 *
 * <p>What is put right, each at an extension point of Jinjava: operators ({@link TemplateParser}),
 * the truth of values ({@link #isTrue}), for and if blocks ({@link TemplateForTag}, {@link
 * TemplateIfTag}), methods of strings and maps ({@link TemplateMethods}), {@code tojson} and {@code
 * items} and the test {@code iterable} ({@link TemplateFilters}), booleans printed as True and
 * False.
 *
 * <p>What still differs: an undefined value and {@code none} are the same, and properties of an
 * undefined value are undefined instead of an error. String formatting by {@code %} and {@code
 * format}, escapes such as {@code \\u00e9} and {@code dict()} are refused with a message.
 */
final class TemplateEngine extends Jinjava {

    private final ExpressionFactory expressions;

    TemplateEngine() {
        super(config());
        Properties properties = new Properties();
        properties.setProperty(TreeBuilder.class.getName(), TemplateParser.Syntax.class.getName());
        expressions = new ExpressionFactoryImpl(properties, new Truth());
        registerTag(new TemplateForTag());
        registerTag(new TemplateIfTag());
        registerTag(new TemplateGenerationTag());
        TemplateFilters.ALL.forEach(this::registerFilter);
        registerFunction(function("raise_exception", String.class));
        registerFunction(function("strftime_now", String.class));
        TemplateFilters.TESTS.forEach(this::registerExpTest);
    }

    @Override
    public ExpressionFactory getExpressionFactory() {
        // Called by the parent's constructor only through interpreters, which come later.
        return expressions;
    }

    /** Returns whether Python takes a value for true. */
    static boolean isTrue(Object value) {
        if (value == null) {
            return false;
        }
        if (value instanceof Boolean bool) {
            return bool;
        }
        if (value instanceof Number number) {
            return number.doubleValue() != 0;
        }
        if (value instanceof CharSequence text) {
            return !text.isEmpty();
        }
        if (value instanceof Map<?, ?> map) {
            return !map.isEmpty();
        }
        return !(value instanceof Collection<?> list) || !list.isEmpty();
    }

    private static JinjavaConfig config() {
        CompositeELResolver resolver = new CompositeELResolver();
        resolver.add(new TemplateMethods());
        resolver.add(JinjavaInterpreterResolver.DEFAULT_RESOLVER_READ_ONLY);
        LegacyOverrides asInPython =
                LegacyOverrides.newBuilder()
                        .withEvaluateMapKeys(true)
                        .withIterateOverMapKeys(true)
                        .withUsePyishObjectMapper(true)
                        .withUseNaturalOperatorPrecedence(true)
                        .withParseWhitespaceControlStrictly(true)
                        .withAllowAdjacentTextNodes(true)
                        .withUseTrimmingForNotesAndExpressions(true)
                        .withKeepNullableLoopValues(true)
                        .build();
        return JinjavaConfig.newBuilder()
                .withTrimBlocks(true)
                .withLegacyOverrides(asInPython)
                // Otherwise what a user writes in {{ }} would be run.
                .withNestedInterpretationEnabled(false)
                .withMaxRenderDepth(64)
                .withElResolver(resolver)
                .withInterperterFactory(new Interpreters())
                .build();
    }

    private static ELFunctionDefinition function(String name, Class<?>... parameters) {
        return new ELFunctionDefinition("", name, TemplateFunctions.class, name, parameters);
    }

    private static String python(boolean value) {
        return value ? "True" : "False";
    }

    /** Truth as in Python: the strings "false" and "0" are true. */
    private static final class Truth extends TruthyTypeConverter {

        private static final long serialVersionUID = 1L;

        @Override
        protected Boolean coerceToBoolean(Object value) {
            return isTrue(value);
        }

        @Override
        protected String coerceToString(Object value) {
            return value instanceof Boolean bool ? python(bool) : super.coerceToString(value);
        }
    }

    /** Prints booleans as Python does. */
    private static final class Interpreter extends JinjavaInterpreter {

        Interpreter(Jinjava application, Context context, JinjavaConfig config) {
            super(application, context, config);
        }

        Interpreter(JinjavaInterpreter original) {
            super(original);
        }

        @Override
        public String getAsString(Object value) {
            return value instanceof Boolean bool ? python(bool) : super.getAsString(value);
        }
    }

    /** Makes Jinjava use {@link Interpreter}. */
    private static final class Interpreters implements InterpreterFactory {

        @Override
        public JinjavaInterpreter newInstance(JinjavaInterpreter original) {
            return new Interpreter(original);
        }

        @Override
        public JinjavaInterpreter newInstance(
                Jinjava application, Context context, JinjavaConfig config) {
            return new Interpreter(application, context, config);
        }
    }
}
