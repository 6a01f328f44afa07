/**
 * How tasks run on streams with the fewest waits between them. Pure: a task is a number here, above those it depends on.
 *
 * A dependency that others imply needs nothing. Each of the rest needs a wait of its own, unless the dependent is what its
 * stream does right after the task. A task has one successor on its stream and one predecessor, so what can go without waits
 * is a matching, and a maximum one leaves the fewest.
 */

/** For each task, the tasks it depends on. */
export type Dependencies = ReadonlyArray<ReadonlyArray<number>>

/** Streams are numbers too; 0 is the current one. */
export interface Plan {
  readonly streams: number
  readonly streamOf: ReadonlyArray<number>
  /** What each task follows on its stream. */
  readonly previous: ReadonlyArray<number | undefined>
  /** Tasks of other streams that each task waits for. */
  readonly waits: Dependencies
  /** How many tasks wait for each. */
  readonly waiters: ReadonlyArray<number>
  /** Streams that have to wait for what the current one holds when a run begins. */
  readonly forks: ReadonlyArray<number>
  /** Streams that the current one has to wait for when a run ends. */
  readonly joins: ReadonlyArray<number>
}

/**
 * Plans tasks on so many streams at most. Without that bound, work of two tasks is in order only where a dependency asks for
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

const noTasks: Plan = { streams: 0, streamOf: [], previous: [], waits: [], waiters: [], forks: [], joins: [] }

/**
 * The tasks so that each comes after those it depends on, otherwise in the order given; or else a circle: tasks each of which
 * depends on the one before it, the first on the last.
 */
export const sortTasks = (
  dependencies: Dependencies
): { readonly order: ReadonlyArray<number>; readonly circle: ReadonlyArray<number> } => {
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
        return { order, circle: [dependency, ...path.slice(path.indexOf(dependency) + 1).reverse()] }
      } else if (isDone[dependency] === 0) path.push(dependency)
    }
  }
  return { order, circle: [] }
}

/** The promised order: who is after whom, and the dependencies that say all of it, those that others imply left out. */
interface Order {
  readonly needed: Dependencies
  /** The same from the other end: for each task, those that depend on it. */
  readonly dependents: Dependencies
  readonly after: BitRows
}

/** Each task is looked at after all that depend on it, and its nearest dependents before those that they imply. */
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
  /** Adds a task and all that is in its own set. */
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

/** The members of both sets, as they are when it comes to them. */
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

/** What follows what on the same stream. */
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
   * Has as many of the tasks as possible be followed by one of the open ones; those that come earlier matter more. A task that
   * is followed stays so, but what follows it may change. What a search in vain has seen leads nowhere later either.
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

  /** An open task that follows nothing yet, reached from a task by exchanging successors; the shortest way to one. */
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
 * Lets as many dependents as possible go on right after a task they depend on. Tasks with one dependent come first: with it on
 * their stream they need no record either.
 */
const continueStreams = (pairs: Pairs, { dependents }: Order): void => {
  const tasks = indices(dependents.length)
  const withOne = tasks.filter((task) => dependents[task]!.length === 1)
  const withMore = tasks.filter((task) => dependents[task]!.length > 1)
  pairs.extend([...withOne, ...withMore], bitsOf(tasks.length, tasks), (task) => dependents[task]!)
}

/**
 * The first task of what runs on the current stream: it begins with a task that depends on nothing, which needs no wait then,
 * and ends with one that nothing depends on. Followed back from the last task, which is such an end, a stream that begins with
 * a task that depends on others goes on from one of them instead; what that one was followed by begins a stream in its place.
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

/** Lets streams go on with work that comes after all they hold anyway, which saves streams and no waits. */
const reuseStreams = (pairs: Pairs, { after, dependents }: Order): void => {
  const tasks = indices(dependents.length)
  const first = tasks.filter((task) => pairs.previous[task] === none)
  const last = tasks.filter((task) => pairs.next[task] === none)
  pairs.extend(last, bitsOf(tasks.length, first), (task, open) => inBoth(after.row(task), open))
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

/** Moves the tasks of streams beyond the bound to the others, those with the fewest tasks first. */
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
