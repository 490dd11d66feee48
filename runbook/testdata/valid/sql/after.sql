ALTER TABLE erp.orders SET (fillfactor = 90)
