/**
 * A map that holds its values weakly: an entry disappears when its value is garbage collected.
 */
export class WeakValues<Key, Value extends object> {
  readonly #entries = new Map<Key, WeakRef<Value>>()
  readonly #collected = new FinalizationRegistry((key: Key) => {
    if (this.#entries.get(key)?.deref() === undefined) this.#entries.delete(key)
  })

  get(key: Key): Value | undefined {
    return this.#entries.get(key)?.deref()
  }

  set(key: Key, value: Value): void {
    this.#entries.set(key, new WeakRef(value))
    this.#collected.register(value, key)
  }

  get size(): number {
    return this.#entries.size
  }

  *values(): IterableIterator<Value> {
    for (const entry of this.#entries.values()) {
      const value = entry.deref()
      if (value !== undefined) yield value
    }
  }
}
