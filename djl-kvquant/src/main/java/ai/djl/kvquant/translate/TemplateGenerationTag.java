/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.translate;

import com.hubspot.jinjava.interpret.JinjavaInterpreter;
import com.hubspot.jinjava.lib.tag.Tag;
import com.hubspot.jinjava.tree.Node;
import com.hubspot.jinjava.tree.TagNode;

/**
 * The generation block, by which templates mark the assistant's words for training; here it is what
 * it contains.
 */
final class TemplateGenerationTag implements Tag {

    private static final long serialVersionUID = 1L;

    @Override
    public String getName() {
        return "generation";
    }

    @Override
    public String interpret(TagNode node, JinjavaInterpreter interpreter) {
        StringBuilder output = new StringBuilder();
        for (Node child : node.getChildren()) {
            output.append(child.render(interpreter));
        }
        return output.toString();
    }
}
