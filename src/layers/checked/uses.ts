/**
 * What operations read and write, from their arguments. Arguments of the wrong kind use nothing here, because the runtime refuses them.
 */
import type { LibraryParameter } from "../../cuda/libraryParameters.ts"
import type { ParameterKind, PointerKind } from "../../cuda/parameters.ts"
import type {
  EnqueuedCall,
  KernelRef,
  LibraryRef,
  MemoryRange,
  MemoryRef,
  MemoryRows,
  MemoryTransfer,
  PointerArgument
} from "../CudaRuntime.ts"
import { isPart, isRange, isRaw } from "../shared/arguments.ts"
import { ownMemory } from "../shared/resources.ts"
import type { Use } from "./Checks.ts"
import type { AccessKind } from "./reports.ts"

/** Where uses are collected. */
export interface Collected {
  /** What the operation is called. */
  readonly operation: string
  readonly uses: Array<Use>
  /** Raw addresses: nobody knows how much is used through them. */
  readonly raw: Array<RawUse>
}

/** Use of memory by its address. */
export interface RawUse {
  readonly address: number
  readonly kind: AccessKind
  readonly argument: string
}

const add = (
  uses: Array<Use>,
  memory: MemoryRef,
  offset: number,
  byteLength: number,
  kind: AccessKind,
  argument: string | undefined
): void => {
  const own = ownMemory(memory)
  if (own.state !== "live" || own.slot !== undefined || !isRange(offset, byteLength, own.byteLength)) return
  if (byteLength > 0) uses.push({ memory: own, offset, byteLength, kind, argument })
}

const addRange = (uses: Array<Use>, range: MemoryRange, kind: AccessKind, argument: string | undefined): void =>
  add(uses, range?.memory, range?.offset, range?.byteLength, kind, argument)

export const ofRanges = (
  reads: ReadonlyArray<MemoryRange>,
  writes: ReadonlyArray<MemoryRange>
): Array<Use> => {
  const uses: Array<Use> = []
  for (const [index, range] of reads.entries()) addRange(uses, range, "reads", `reads[${index}]`)
  for (const [index, range] of writes.entries()) addRange(uses, range, "writes", `writes[${index}]`)
  return uses
}

export const ofCopy = (to: MemoryRange, from: MemoryRange): Array<Use> => {
  const uses: Array<Use> = []
  addRange(uses, from, "reads", "source")
  addRange(uses, to, "writes", "destination")
  return uses
}

export const ofFill = (to: MemoryRange): Array<Use> => {
  const uses: Array<Use> = []
  addRange(uses, to, "writes", "destination")
  return uses
}

/** The rows of a copy, without the bytes between them. */
export const ofCopy2D = (
  to: MemoryRows,
  from: MemoryRows,
  { height, width }: { readonly width: number; readonly height: number }
): Array<Use> => {
  const uses: Array<Use> = []
  addRows(uses, from, width, height, "reads", "source")
  addRows(uses, to, width, height, "writes", "destination")
  return uses
}

const addRows = (
  uses: Array<Use>,
  { memory, offset, pitch }: MemoryRows,
  width: number,
  height: number,
  kind: AccessKind,
  argument: string
): void => {
  if (pitch === width) return add(uses, memory, offset, width * height, kind, argument)
  const last = offset + (height - 1) * pitch + width
  if (!(pitch > width) || !(last <= memory.byteLength)) return
  for (let row = 0; row < height; row++) add(uses, memory, offset + row * pitch, width, kind, argument)
}

export const ofBatch = (transfers: ReadonlyArray<MemoryTransfer>): Array<Use> => {
  const uses: Array<Use> = []
  for (let index = 0; index < transfers.length; index++) {
    addRange(uses, transfers[index]!.from, "reads", `copies[${index}].source`)
    addRange(uses, transfers[index]!.to, "writes", `copies[${index}].destination`)
  }
  return uses
}

const accessKinds: { readonly [Access in PointerKind["access"]]: AccessKind } = {
  read: "reads",
  write: "writes",
  readWrite: "reads and writes"
}

const addPart = (
  collected: Collected,
  value: PointerArgument | unknown,
  access: PointerKind["access"],
  argument: string
): void => {
  if (value === null || value === undefined) return
  if (!isPart(value)) {
    if (isRaw(value)) collected.raw.push({ address: value.address, kind: accessKinds[access], argument })
    return
  }
  add(collected.uses, value.buffer.ref, value.offset, value.byteLength, accessKinds[access], argument)
}

/** Collects the uses of one argument. */
type Collect = (collected: Collected, value: unknown, path: string) => void

const collectorOf = (kind: ParameterKind): Collect | undefined => {
  if (kind.kind === "pointer") return (collected, value, path) => addPart(collected, value, kind.access, path)
  if (kind.kind === "struct") return structCollector(Object.entries(kind.fields))
  return kind.kind === "array" ? arrayCollector(kind.element, kind.length) : undefined
}

const structCollector = (fields: ReadonlyArray<readonly [string, ParameterKind]>): Collect | undefined => {
  const collectors = fields.flatMap(([name, kind]) => {
    const collect = collectorOf(kind)
    return collect === undefined ? [] : [{ name, collect }]
  })
  if (collectors.length === 0) return undefined
  return (collected, value, path) => {
    for (const { collect, name } of collectors) {
      collect(collected, (value as Readonly<Record<string, unknown>> | null)?.[name], `${path}.${name}`)
    }
  }
}

const arrayCollector = (element: ParameterKind, length: number): Collect | undefined => {
  const collect = collectorOf(element)
  if (collect === undefined) return undefined
  return (collected, value, path) => {
    for (let index = 0; index < length; index++) {
      collect(collected, (value as ArrayLike<unknown> | null)?.[index], `${path}[${index}]`)
    }
  }
}

/** The parameters of a kernel that hold pointers. */
export interface Plan {
  /** What its launches are called. */
  readonly operation: string
  readonly pointers: ReadonlyArray<{
    readonly index: number
    readonly name: string
    readonly collect: Collect
    /** How it is used, if the parameter itself is a pointer. */
    readonly access: PointerKind["access"] | undefined
  }>
}

const plans = new WeakMap<KernelRef, Plan>()

/** What the last launch was of: often, the next one is of the same kernel. */
let last: { readonly kernel: KernelRef; readonly plan: Plan } | undefined

export const planOf = (kernel: KernelRef): Plan => {
  if (last?.kernel === kernel) return last.plan
  const plan = plans.get(kernel) ?? makePlan(kernel)
  last = { kernel, plan }
  return plan
}

const makePlan = (kernel: KernelRef): Plan => {
  const pointers = kernel.parameters.flatMap((kind, index) => {
    const collect = collectorOf(kind)
    const access = kind.kind === "pointer" ? kind.access : undefined
    return collect === undefined ? [] : [{ index, name: `arguments[${index}]`, collect, access }]
  })
  const plan = { operation: `CudaKernel.launch of ${kernel.name}`, pointers }
  plans.set(kernel, plan)
  return plan
}

/** The uses of a launch, by the kinds of the kernel's parameters. */
const ofLaunch = (kernel: KernelRef, values: ReadonlyArray<unknown>): Collected => {
  const { operation, pointers } = planOf(kernel)
  const collected: Collected = { operation, uses: [], raw: [] }
  for (let at = 0; at < pointers.length; at++) {
    const { collect, index, name } = pointers[at]!
    collect(collected, values[index], name)
  }
  return collected
}

/** The uses of a launch. The runtime refuses values of the wrong kind, and reading them must not throw before that. */
export const readLaunch = (kernel: KernelRef, values: ReadonlyArray<unknown>): Collected => {
  try {
    return ofLaunch(kernel, values)
  } catch {
    return { operation: "CudaKernel.launch", uses: [], raw: [] }
  }
}

export const ofCall = ({ names, reads = [], writes = [] }: EnqueuedCall): Collected => {
  const collected: Collected = { operation: names?.operation ?? "CudaMemory.enqueue", uses: [], raw: [] }
  for (const [index, part] of reads.entries()) addPart(collected, part, "read", `reads[${index}]`)
  for (const [index, part] of writes.entries()) addPart(collected, part, "write", `writes[${index}]`)
  return collected
}

const hasArgument = ({ kind }: LibraryParameter): boolean => kind !== "stream" && kind !== "newHandle"

/** The uses of a call of a library, by the kinds of the function's parameters. */
export const ofLibraryCall = (library: LibraryRef, name: string, values: ReadonlyArray<unknown>): Collected => {
  const collected: Collected = { operation: `CudaLibrary.call of ${name}`, uses: [], raw: [] }
  const parameters = library.definition.functions[name]?.parameters.filter(hasArgument) ?? []
  for (const [index, kind] of parameters.entries()) {
    if (kind.kind === "pointer") addPart(collected, values[index], kind.access, `arguments[${index}]`)
  }
  return collected
}
