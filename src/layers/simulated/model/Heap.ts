/**
 * A binary heap, smallest item first.
 */
export class Heap<A> {
  readonly #items: Array<A> = []
  readonly #before: (a: A, b: A) => boolean

  constructor(before: (a: A, b: A) => boolean) {
    this.#before = before
  }

  get size(): number {
    return this.#items.length
  }

  peek(): A | undefined {
    return this.#items[0]
  }

  push(item: A): void {
    const items = this.#items
    let hole = items.length
    items.push(item)
    while (hole > 0) {
      const parent = (hole - 1) >> 1
      if (!this.#before(item, items[parent]!)) break
      items[hole] = items[parent]!
      hole = parent
    }
    items[hole] = item
  }

  pop(): A | undefined {
    const items = this.#items
    const top = items[0]
    const last = items.pop()
    if (top === undefined || last === undefined || items.length === 0) return top
    this.#sink(last)
    return top
  }

  #sink(item: A): void {
    const items = this.#items
    const half = items.length >> 1
    let hole = 0
    while (hole < half) {
      let child = 2 * hole + 1
      if (child + 1 < items.length && this.#before(items[child + 1]!, items[child]!)) child++
      if (!this.#before(items[child]!, item)) break
      items[hole] = items[child]!
      hole = child
    }
    items[hole] = item
  }
}
