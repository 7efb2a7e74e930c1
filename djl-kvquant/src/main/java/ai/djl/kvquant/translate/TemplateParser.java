/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import com.hubspot.jinjava.el.ExtendedSyntaxBuilder;
import com.hubspot.jinjava.el.ext.ExtendedParser;
import com.hubspot.jinjava.interpret.Context;
import com.hubspot.jinjava.interpret.JinjavaInterpreter;
import java.math.BigDecimal;
import java.util.Map;
import java.util.Objects;
import java.util.function.Function;
import jinjava.de.odysseus.el.misc.NumberOperations;
import jinjava.de.odysseus.el.tree.Bindings;
import jinjava.de.odysseus.el.tree.impl.Builder;
import jinjava.de.odysseus.el.tree.impl.Parser;
import jinjava.de.odysseus.el.tree.impl.Scanner;
import jinjava.de.odysseus.el.tree.impl.ast.AstBinary;
import jinjava.de.odysseus.el.tree.impl.ast.AstDot;
import jinjava.de.odysseus.el.tree.impl.ast.AstIdentifier;
import jinjava.de.odysseus.el.tree.impl.ast.AstNode;
import jinjava.de.odysseus.el.tree.impl.ast.AstUnary;
import jinjava.javax.el.ELContext;

/**
 * Operators as in Python: {@code not} binds weaker than comparisons, {@code and} gives one of its
 * operands, {@code %} has the sign of the divisor, {@code *} repeats strings, and values of
 * different types are different (Jinjava would convert {@code ''} to {@code false}).
 */
final class TemplateParser extends ExtendedParser {

    private static final AstBinary.Operator AND = TemplateParser::and;
    private static final AstBinary.Operator EQUAL =
            (bindings, context, left, right) ->
                    same(left.eval(bindings, context), right.eval(bindings, context));
    private static final AstBinary.Operator UNEQUAL =
            (bindings, context, left, right) ->
                    !same(left.eval(bindings, context), right.eval(bindings, context));

    private static final AstBinary.Operator TIMES = TemplateParser::times;
    private static final AstBinary.Operator MODULO = TemplateParser::modulo;
    private static final Map<AstBinary.Operator, AstBinary.Operator> IN_PYTHON =
            Map.of(
                    AstBinary.EQ, EQUAL,
                    AstBinary.NE, UNEQUAL,
                    AstBinary.MUL, TIMES,
                    AstBinary.MOD, MODULO);

    private TemplateParser(Builder builder, String input) {
        super(builder, input);
    }

    @Override
    protected AstNode and(boolean required) throws Scanner.ScanException, ParseException {
        AstNode left = not(required);
        while (left != null && getToken().getSymbol() == Scanner.Symbol.AND) {
            consumeToken();
            left = createAstBinary(left, not(true), AND);
        }
        return left;
    }

    private AstNode not(boolean required) throws Scanner.ScanException, ParseException {
        if (getToken().getSymbol() != Scanner.Symbol.NOT) {
            return eq(required);
        }
        consumeToken();
        return createAstUnary(not(true), AstUnary.NOT);
    }

    /** Refuses filters and tests that do not exist, which Jinjava would skip without a word. */
    @Override
    protected AstDot createAstDot(AstNode base, String property, boolean settable) {
        if (base instanceof AstIdentifier identifier) {
            Context context = JinjavaInterpreter.getCurrent().getContext();
            require(identifier.getName(), FILTER_PREFIX, "filter", context::getFilter);
            require(identifier.getName(), EXPTEST_PREFIX, "test", context::getExpTest);
        }
        return super.createAstDot(base, property, settable);
    }

    private static void require(
            String name, String prefix, String kind, Function<String, ?> registered) {
        if (name.startsWith(prefix) && registered.apply(name.substring(prefix.length())) == null) {
            throw new ChatTemplateException(
                    "the " + kind + " '" + name.substring(prefix.length()) + "' is not known");
        }
    }

    @Override
    protected AstBinary createAstBinary(AstNode left, AstNode right, AstBinary.Operator operator) {
        AstBinary.Operator inPython = IN_PYTHON.getOrDefault(operator, operator);
        return super.createAstBinary(left, right, inPython);
    }

    private static Object and(Bindings bindings, ELContext context, AstNode left, AstNode right) {
        Object value = left.eval(bindings, context);
        return TemplateEngine.isTrue(value) ? right.eval(bindings, context) : value;
    }

    private static Object times(Bindings bindings, ELContext context, AstNode left, AstNode right) {
        Object a = left.eval(bindings, context);
        Object b = right.eval(bindings, context);
        return a instanceof String text && b instanceof Long count
                ? text.repeat((int) Math.max(0, count))
                : NumberOperations.mul(bindings, a, b);
    }

    private static Object modulo(
            Bindings bindings, ELContext context, AstNode left, AstNode right) {
        Object a = left.eval(bindings, context);
        Object b = right.eval(bindings, context);
        if (a instanceof String) {
            throw new ChatTemplateException(
                    "string formatting by % is not supported; templates can join strings by +");
        }
        return a instanceof Long x && b instanceof Long y && y != 0
                ? (Object) Math.floorMod(x, y)
                : NumberOperations.mod(bindings, a, b);
    }

    private static boolean same(Object a, Object b) {
        BigDecimal left = number(a);
        BigDecimal right = number(b);
        return left != null && right != null ? left.compareTo(right) == 0 : Objects.equals(a, b);
    }

    private static BigDecimal number(Object value) {
        if (value instanceof Boolean bool) {
            return bool ? BigDecimal.ONE : BigDecimal.ZERO;
        }
        return value instanceof Number ? new BigDecimal(value.toString()) : null;
    }

    /** Makes Jinjava use this parser. */
    public static final class Syntax extends ExtendedSyntaxBuilder {

        private static final long serialVersionUID = 1L;

        /**
         * Creates the builder, as Jinjava does by name.
         *
         * @param features the features of the expression language
         */
        public Syntax(Feature... features) {
            super(features);
        }

        @Override
        protected Parser createParser(String expression) {
            return new TemplateParser(this, expression);
        }
    }
}
