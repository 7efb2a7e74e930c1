/* Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE. */
package ai.djl.kvquant.cache;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import org.junit.jupiter.api.Test;

class PagePoolTest {

    @Test
    void theLowestPagesGoFirstUntilNoneIsLeft() {
        PagePool pool = new PagePool(3);
        assertEquals(0, pool.allocate());
        assertEquals(1, pool.allocate());
        assertEquals(2, pool.allocate());
        assertEquals(-1, pool.allocate());
        assertEquals(3, pool.used());
    }

    @Test
    void aPageIsFreeWhenNobodyHoldsIt() {
        PagePool pool = new PagePool(2);
        int page = pool.allocate();
        assertFalse(pool.isShared(page));
        pool.retain(page);
        assertTrue(pool.isShared(page));
        pool.release(page);
        assertFalse(pool.isShared(page));
        assertEquals(1, pool.used());
        pool.release(page);
        assertEquals(0, pool.used());
        assertEquals(page, pool.allocate());
    }

    @Test
    void aPageThatIsFreeIsNotReleasedAgain() {
        PagePool pool = new PagePool(2);
        int page = pool.allocate();
        pool.release(page);
        assertThrows(IllegalStateException.class, () -> pool.release(page));
        assertThrows(IllegalStateException.class, () -> pool.retain(1));
    }
}
