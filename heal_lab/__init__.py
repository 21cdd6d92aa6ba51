"""heal_lab: what measures HEAL and builds its small models. `heal_ref` never imports it."""
