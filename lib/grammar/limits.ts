/** What a schema may ask for. A larger one is refused with a RangeError before it takes time or memory. */
export const limits = {
  /** Characters of the schema as JSON. */
  text: 256 * 1024,
  /** Objects and arrays inside one another in the schema. */
  depth: 64,
  /** Different subschemas. */
  rules: 4096,
  /** Nodes of the compiled grammar. */
  nodes: 1 << 15,
  /** Alternatives of one schema after allOf, and keywords beside anyOf, have been merged into each. */
  alternatives: 256,
  /** Schemas that are merged into others, in all. */
  merges: 1 << 14,
  /** minItems, maxItems and prefixItems. */
  items: 1024,
  /** minLength and maxLength. */
  length: 1 << 24,
  /** Characters of a pattern. */
  pattern: 1024,
  /** Groups inside one another in a pattern. */
  groups: 32,
  /** Largest bound of a repetition in a pattern. */
  repetitions: 1024,
  /** States of a pattern, before it is made deterministic. */
  patternStates: 1 << 14,
  /** Steps over states, classes of characters and edges to make a pattern deterministic; some tens of milliseconds. */
  patternWork: 1 << 19,
} as const;
