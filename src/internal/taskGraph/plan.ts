/**
 * Assigns tasks to streams with the fewest waits between streams. Pure: a task is a number here, greater than those of the tasks it
 * depends on.
 *
 * A dependency that is implied by others needs nothing. Each other dependency needs its own wait, unless the dependent directly
 * follows the task on the same stream. A task has at most one successor and one predecessor on its stream, so the dependencies that
 * need no wait form a matching, and a maximum matching leaves the fewest waits.
 */

/** For each task, the tasks it depends on. */
export type Dependencies = ReadonlyArray<ReadonlyArray<number>>

/** Streams are numbers too; 0 is the current one. */
export interface Plan {
  readonly streams: number
  readonly streamOf: ReadonlyArray<number>
  /** The task before each task on its stream. */
  readonly previous: ReadonlyArray<number | undefined>
  /** The tasks of other streams that each task waits for. */
  readonly waits: Dependencies
  /** How many tasks wait for each. */
  readonly waiters: ReadonlyArray<number>
  /** Streams that must wait for the current one when a run begins. */
  readonly forks: ReadonlyArray<number>
  /** Streams that the current one must wait for when a run ends. */
  readonly joins: ReadonlyArray<number>
}

/**
 * Plans tasks on a limited number of streams. With enough of them, the work of two tasks is ordered only where a dependency requires
 * it.
 */
export const makePlan = (dependencies: Dependencies, most: number): Plan => {
  if (dependencies.length === 0) return noTasks
  const order = reduce(dependencies)
  const pairs = new Pairs(dependencies.length)
  continueStreams(pairs, order)
  const main = mainStream(pairs, order)
  reuseStreams(pairs, order)
  const streamOf = numberStreams(pairs, main)
  const shared = shareStreams(streamOf, most)
  if (shared === undefined) return assemble(order, streamOf, previousOf(streamOf))
  const previous = previousOf(shared)
  const inOrder = dependencies.map((own, task) => {
    const before = previous[task]
    return before === undefined ? own : [...own, before]
  })
  return assemble(reduce(inOrder), shared, previous)
}

/**
 * Plans tasks that have a place each, such as a device. Streams hold tasks of one place. The current stream holds none, so it only forks and
 * joins.
 */
export const makePlanOver = (dependencies: Dependencies, places: ReadonlyArray<number>): Plan => {
  if (dependencies.length === 0) return noTasks
  const order = reduce(dependencies)
  const pairs = new Pairs(dependencies.length)
  const isTogether = (task: number, other: number) => places[task] === places[other]
  continueStreams(pairs, order, isTogether)
  reuseStreams(pairs, order, isTogether)
  const streamOf = numberStreams(pairs, none)
  return assemble(order, streamOf, previousOf(streamOf))
}

const noTasks: Plan = { streams: 0, streamOf: [], previous: [], waits: [], waiters: [], forks: [], joins: [] }

/**
 * Sorts tasks so that each comes after those it depends on, and otherwise keeps their order. Or else finds a cycle: tasks that each
 * depend on the one before, and the first on the last.
 */
export const sortTasks = (
  dependencies: Dependencies
): { readonly order: ReadonlyArray<number>; readonly cycle: ReadonlyArray<number> } => {
  const order: Array<number> = []
  const looked = new Int32Array(dependencies.length)
  const isOpen = new Uint8Array(dependencies.length)
  const isDone = new Uint8Array(dependencies.length)
  for (let root = 0; root < dependencies.length; root++) {
    const path = isDone[root] === 1 ? [] : [root]
    while (path.length > 0) {
      const task = path.at(-1)!
      isOpen[task] = 1
      const dependency = dependencies[task]![looked[task]!++]
      if (dependency === undefined) {
        isDone[task] = 1
        isOpen[task] = 0
        order.push(task)
        path.pop()
      } else if (isOpen[dependency] === 1) {
        return { order, cycle: [dependency, ...path.slice(path.indexOf(dependency) + 1).reverse()] }
      } else if (isDone[dependency] === 0) path.push(dependency)
    }
  }
  return { order, cycle: [] }
}

/** The order to keep: which tasks come after which, and the dependencies that suffice for it, without implied ones. */
interface Order {
  readonly needed: Dependencies
  /** The same dependencies in reverse: the tasks that depend on each task. */
  readonly dependents: Dependencies
  readonly after: BitRows
}

/** Visits each task after all tasks that depend on it, and its nearest dependents before those that they imply. */
const reduce = (dependencies: Dependencies): Order => {
  const after = new BitRows(dependencies.length)
  const dependents = inverse(dependencies)
  for (let task = dependencies.length - 1; task >= 0; task--) {
    dependents[task] = dependents[task]!.filter((dependent) => {
      if (after.has(task, dependent)) return false
      after.addWithRow(task, dependent)
      return true
    })
  }
  return { needed: inverse(dependents), dependents, after }
}

const inverse = (lists: Dependencies): Array<ReadonlyArray<number>> => {
  const inverted = lists.map((): Array<number> => [])
  for (const [task, list] of lists.entries()) for (const other of list) inverted[other]!.push(task)
  return inverted
}

/** A set of tasks for each task. */
class BitRows {
  readonly #words: number
  readonly #bits: Uint32Array
  constructor(count: number) {
    this.#words = wordsFor(count)
    this.#bits = new Uint32Array(count * this.#words)
  }
  row(task: number): Uint32Array {
    return this.#bits.subarray(task * this.#words, (task + 1) * this.#words)
  }
  has(task: number, member: number): boolean {
    return (this.#bits[task * this.#words + (member >>> 5)]! & (1 << (member & 31))) !== 0
  }
  /** Adds a task and all members of its own set. */
  addWithRow(task: number, member: number): void {
    const bits = this.#bits
    const [to, from] = [task * this.#words, member * this.#words]
    for (let word = 0; word < this.#words; word++) bits[to + word]! |= bits[from + word]!
    bits[to + (member >>> 5)]! |= 1 << (member & 31)
  }
}

const wordsFor = (count: number): number => Math.ceil(count / 32)

const bitsOf = (count: number, members: Iterable<number>): Uint32Array => {
  const bits = new Uint32Array(wordsFor(count))
  for (const member of members) bits[member >>> 5]! |= 1 << (member & 31)
  return bits
}

/** The members of both sets. Sees changes to words that it has not reached yet. */
function* inBoth(one: Uint32Array, other: Uint32Array): Iterable<number> {
  for (let word = 0; word < one.length; word++) {
    let bits = one[word]! & other[word]!
    while (bits !== 0) {
      const lowest = bits & -bits
      bits ^= lowest
      yield word * 32 + 31 - Math.clz32(lowest)
    }
  }
}

const none = -1

/** Whether a task may follow another on its stream. */
type MayFollow = (task: number, other: number) => boolean

/** Which task follows which on the same stream. */
class Pairs {
  readonly previous: Int32Array
  readonly next: Int32Array
  constructor(count: number) {
    this.previous = new Int32Array(count).fill(none)
    this.next = new Int32Array(count).fill(none)
  }

  set(task: number, next: number): void {
    this.next[task] = next
    this.previous[next] = task
  }

  /**
   * Gives as many tasks as possible a successor among the open ones; earlier tasks take precedence. A task that has a successor
   * keeps having one, but it may change. Tasks that a failed search has seen lead nowhere in later searches either.
   */
  extend(
    tasks: Iterable<number>,
    open: Uint32Array,
    candidates: (task: number, open: Uint32Array) => Iterable<number>
  ): void {
    const unseen = open.slice()
    const seenFrom = new Int32Array(this.next.length)
    for (const task of tasks) {
      const found = this.#search(task, unseen, seenFrom, candidates)
      if (found === undefined) open.set(unseen)
      else {
        this.#shift(task, found, seenFrom)
        unseen.set(open)
      }
    }
  }

  /** Finds an open task without a predecessor that can be reached from a task by exchanging successors, on the shortest path. */
  #search(
    root: number,
    unseen: Uint32Array,
    seenFrom: Int32Array,
    candidates: (task: number, open: Uint32Array) => Iterable<number>
  ): number | undefined {
    const queue = [root]
    for (const task of queue) {
      for (const candidate of candidates(task, unseen)) {
        const bit = 1 << (candidate & 31)
        if ((unseen[candidate >>> 5]! & bit) === 0) continue
        unseen[candidate >>> 5]! &= ~bit
        seenFrom[candidate] = task
        if (this.previous[candidate] === none) return candidate
        queue.push(this.previous[candidate]!)
      }
    }
    return undefined
  }

  #shift(root: number, found: number, seenFrom: Int32Array): void {
    let next = found
    for (;;) {
      const task = seenFrom[next]!
      const released = this.next[task]!
      this.set(task, next)
      if (task === root) return
      next = released
    }
  }
}

const indices = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, index) => index)

/**
 * Lets as many dependents as possible directly follow a task they depend on. Tasks with a single dependent come first: with it on
 * their stream, they need no record either.
 */
const continueStreams = (pairs: Pairs, { dependents }: Order, mayFollow?: MayFollow): void => {
  const tasks = indices(dependents.length)
  const withOne = tasks.filter((task) => dependents[task]!.length === 1)
  const withMore = tasks.filter((task) => dependents[task]!.length > 1)
  const candidates = (task: number) =>
    mayFollow === undefined ? dependents[task]! : dependents[task]!.filter((other) => mayFollow(task, other))
  pairs.extend([...withOne, ...withMore], bitsOf(tasks.length, tasks), candidates)
}

/**
 * Returns the first task to run on the current stream. Its tasks begin with one that has no dependencies, which then needs no wait,
 * and end with one that has no dependents. The last task is such an end. Going back from it, a task that begins a stream but depends
 * on others is moved behind one of them; the previous successor of that one begins a stream instead.
 */
const mainStream = (pairs: Pairs, { needed }: Order): number => {
  let first = needed.length - 1
  for (;;) {
    const nearest = needed[first]!.at(-1)
    if (nearest === undefined) return first
    if (pairs.previous[first] === none) {
      pairs.previous[pairs.next[nearest]!] = none
      pairs.set(nearest, first)
    }
    first = pairs.previous[first]!
  }
}

/** Lets streams continue with tasks that come after everything they hold anyway. This saves streams, but no waits. */
const reuseStreams = (pairs: Pairs, { after, dependents }: Order, mayFollow?: MayFollow): void => {
  const tasks = indices(dependents.length)
  const first = tasks.filter((task) => pairs.previous[task] === none)
  const last = tasks.filter((task) => pairs.next[task] === none)
  pairs.extend(last, bitsOf(tasks.length, first), (task, open) => {
    const candidates = inBoth(after.row(task), open)
    return mayFollow === undefined ? candidates : Array.from(candidates).filter((other) => mayFollow(task, other))
  })
}

const numberStreams = (pairs: Pairs, main: number): ReadonlyArray<number> => {
  const streamOf: Array<number> = []
  let streams = 1
  for (const [task, previous] of pairs.previous.entries()) {
    if (previous !== none) streamOf.push(streamOf[previous]!)
    else streamOf.push(task === main ? 0 : streams++)
  }
  return streamOf
}

/** Moves the tasks of streams beyond the limit to the others, each to the one with the fewest tasks. */
const shareStreams = (streamOf: ReadonlyArray<number>, most: number): ReadonlyArray<number> | undefined => {
  const sizes: Array<number> = []
  for (const stream of streamOf) sizes[stream] = (sizes[stream] ?? 0) + 1
  if (sizes.length <= most) return undefined
  const loads = sizes.slice(0, most)
  const targets = sizes.map((size, stream) => {
    if (stream < most) return stream
    const target = loads.indexOf(Math.min(...loads))
    loads[target]! += size
    return target
  })
  return streamOf.map((stream) => targets[stream]!)
}

const previousOf = (streamOf: ReadonlyArray<number>): ReadonlyArray<number | undefined> => {
  const last: Array<number | undefined> = []
  return streamOf.map((stream, task) => {
    const previous = last[stream]
    last[stream] = task
    return previous
  })
}

const assemble = ({ dependents, needed }: Order, streamOf: ReadonlyArray<number>, previous: Plan["previous"]): Plan => {
  const isElsewhere = (task: number) => (other: number) => streamOf[other] !== streamOf[task]
  const withNone = (lists: Dependencies) => streamOf.filter((stream, task) => stream !== 0 && lists[task]!.length === 0)
  return {
    streams: streamOf.reduce((most, stream) => Math.max(most, stream + 1), 0),
    streamOf,
    previous,
    waits: needed.map((own, task) => own.filter(isElsewhere(task))),
    waiters: dependents.map((own, task) => own.filter(isElsewhere(task)).length),
    forks: withNone(needed),
    joins: withNone(dependents)
  }
}
