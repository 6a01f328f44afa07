/**
 * A simple reference for the meaning of a program of streams and events: a happens-before graph, built by looking at every
 * earlier instruction. Slow, and independent of the model under test.
 */
export interface Instruction {
  readonly op: "record" | "wait" | "copy" | "fill" | "work"
  readonly stream: number
  /** For records and waits. */
  readonly event: number
  /** For copies and fills. */
  readonly to: number
  /** For copies. */
  readonly from: number
  /** The byte of a fill, or the duration of work. */
  readonly value: number
  /** Nanoseconds since the previous instruction. */
  readonly pause: number
}

export interface StreamKind {
  readonly legacy: boolean
  readonly blocking: boolean
}

export interface Node {
  readonly index: number
  readonly instruction: Instruction
  /** When it was enqueued. */
  readonly at: number
  /** Indices of the nodes that must finish before it starts. */
  readonly dependencies: ReadonlySet<number>
}

/** The instructions that become operations: all except waits for events that were never recorded. */
export const graph = (program: ReadonlyArray<Instruction>, streams: ReadonlyArray<StreamKind>): ReadonlyArray<Node> => {
  const nodes: Array<Node> = []
  const records = new Map<number, number>()
  let at = 0
  for (const instruction of program) {
    at += instruction.pause
    const record = records.get(instruction.event)
    if (instruction.op === "wait" && record === undefined) continue
    const index = nodes.length
    const dependencies = new Set(nodes.filter((node) => ordered(node.instruction, instruction, streams)).map(indexOf))
    if (instruction.op === "wait") dependencies.add(record!)
    if (instruction.op === "record") records.set(instruction.event, index)
    nodes.push({ index, instruction, at, dependencies })
  }
  return nodes
}

const indexOf = (node: Node): number => node.index

/** Whether streams alone order an instruction after an earlier one. */
const ordered = (earlier: Instruction, later: Instruction, streams: ReadonlyArray<StreamKind>): boolean => {
  if (earlier.stream === later.stream) return true
  const [a, b] = [streams[earlier.stream]!, streams[later.stream]!]
  return (a.legacy && b.blocking) || (a.blocking && b.legacy)
}

/** Start and end times on a device with unlimited engines. */
export const schedule = (
  nodes: ReadonlyArray<Node>,
  duration: (instruction: Instruction) => number
): ReadonlyArray<{ readonly start: number; readonly end: number }> => {
  const times: Array<{ start: number; end: number }> = []
  for (const { at, dependencies, instruction } of nodes) {
    const start = Math.max(at, ...Array.from(dependencies, (index) => times[index]!.end))
    times.push({ start, end: start + duration(instruction) })
  }
  return times
}

/** All transitive predecessors of each node. */
const ancestors = (nodes: ReadonlyArray<Node>): ReadonlyArray<ReadonlySet<number>> => {
  const all: Array<Set<number>> = []
  for (const { dependencies } of nodes) {
    const own = new Set(dependencies)
    for (const index of dependencies) for (const before of all[index]!) own.add(before)
    all.push(own)
  }
  return all
}

const reads = ({ from, op }: Instruction): number | undefined => op === "copy" ? from : undefined
const writes = ({ op, to }: Instruction): number | undefined => op === "copy" || op === "fill" ? to : undefined

const conflict = (a: Instruction, b: Instruction): boolean => {
  const [readA, readB, writeA, writeB] = [reads(a), reads(b), writes(a), writes(b)]
  return (writeA !== undefined && (writeA === writeB || writeA === readB)) || (writeB !== undefined && writeB === readA)
}

/**
 * The byte that fills each buffer at the end; undefined for buffers with races. Enqueue order is one of the orders that the
 * graph allows, and without races all of them give the same content.
 */
export const contents = (nodes: ReadonlyArray<Node>, buffers: number): ReadonlyArray<number | undefined> => {
  const before = ancestors(nodes)
  const bytes = Array.from({ length: buffers }, (): number | undefined => 0)
  const racing = (node: Node) =>
    nodes.some((other) =>
      other.index !== node.index && conflict(node.instruction, other.instruction) &&
      !before[node.index]!.has(other.index) && !before[other.index]!.has(node.index)
    )
  for (const node of nodes) {
    const { from, op, to, value } = node.instruction
    if (op !== "copy" && op !== "fill") continue
    bytes[to] = racing(node) ? undefined : op === "fill" ? value : bytes[from]
  }
  const spoiled = new Set(nodes.filter(racing).map((node) => writes(node.instruction)))
  return bytes.map((byte, buffer) => spoiled.has(buffer) ? undefined : byte)
}
