/**
 * Plans: products that are ready to be enqueued.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { CudaError } from "../../CudaError.ts"
import type { LibraryHandle } from "../../CudaLibrary.ts"
import type { DeviceBuffer, Slice } from "../../CudaMemory.ts"
import type { CudaRuntimeService, NativeFunction, ResourceState, StreamRef } from "../../layers/CudaRuntime.ts"
import { DeviceHandle, oneLine, unlessLive } from "../handles.ts"
import type { Algorithm, Descriptors } from "./descriptors.ts"
import { planReleased, productAttributes } from "./library.ts"
import type { CublasLt } from "./library.ts"
import { multiplying, readOperands, refuseOperands } from "./operands.ts"
import type { Operands } from "./operands.ts"
import { inColumns } from "./problem.ts"
import type { Problem } from "./problem.ts"
import { multiply } from "./product.ts"
import { allocate, isUsable } from "./workspaces.ts"
import type { Workspaces } from "./workspaces.ts"

type Part = Slice<DeviceBuffer>

/** The functions that a product calls. */
export interface NativeProduct {
  readonly matmul: NativeFunction
  readonly setAttribute: NativeFunction
  readonly descriptors: Descriptors
}

/** What all plans of a service use. */
export interface Shared {
  readonly runtime: CudaRuntimeService
  readonly library: CublasLt
  readonly workspaces: Workspaces
}

/** The state of a plan. */
export class PlanRef {
  state: ResourceState = "live"
  readonly deviceIndex: number
  readonly problem: Problem
  readonly shared: Shared
  readonly handle: LibraryHandle<"cublasLt">
  /** Undefined on simulated devices. */
  readonly native: NativeProduct | undefined
  readonly scope: Scope.Scope
  algorithm: Algorithm
  /** The workspace of recorded graphs. Those may run at the same time, so it is ordered. */
  workspace: DeviceBuffer | undefined
  readonly isSwapped: boolean
  readonly alpha: Float32Array | Float64Array | Int32Array
  readonly beta: Float32Array | Float64Array | Int32Array
  /** The addresses that the descriptor of the product has, by attribute. */
  readonly addresses = new Map<number, number>()
  readonly address = new BigUint64Array(1)
  constructor(
    shared: Shared,
    handle: LibraryHandle<"cublasLt">,
    problem: Problem,
    native: NativeProduct | undefined,
    algorithm: Algorithm,
    scope: Scope.Scope
  ) {
    this.shared = shared
    this.handle = handle
    this.deviceIndex = handle.deviceIndex
    this.problem = problem
    this.native = native
    this.algorithm = algorithm
    this.scope = scope
    this.isSwapped = inColumns(problem).isSwapped
    const [alpha, beta] = [factor(problem), factor(problem)]
    this.alpha = alpha
    this.beta = beta
  }
  toString(): string {
    const { a, b, columns, d, depth, rows } = this.problem
    return `a plan for ${rows} × ${columns} × ${depth} of ${a.type} · ${b.type} → ${d.type}`
  }
}

const factor = ({ scale }: Problem) =>
  scale === "f64" ? new Float64Array(1) : scale === "i32" ? new Int32Array(1) : new Float32Array(1)

/** A planned product. */
export class PlanImpl extends DeviceHandle<PlanRef> {
  readonly "~effect-cuda/CudaBlas/Plan" = "~effect-cuda/CudaBlas/Plan" as const
  get rows(): number {
    return this.ref.problem.rows
  }
  get columns(): number {
    return this.ref.problem.columns
  }
  get depth(): number {
    return this.ref.problem.depth
  }
  get workspaceBytes(): number {
    return this.ref.algorithm.workspaceBytes
  }
  get waves(): number {
    return this.ref.algorithm.waves
  }
  toString(): string {
    const { a, b, d } = this.ref.problem
    const size = `${this.rows} × ${this.columns} × ${this.depth}`
    const types = `${a.type} · ${b.type} → ${d.type}`
    return oneLine("MatmulPlan", size, types, `device ${this.deviceIndex}`, unlessLive(this.ref))
  }
  toJSON() {
    const { columns, depth, deviceIndex, rows, waves, workspaceBytes } = this
    return { _id: "MatmulPlan", rows, columns, depth, deviceIndex, workspaceBytes, waves, state: this.ref.state }
  }
}

/** Enqueues a product. */
export const enqueue = (plan: PlanRef, operands: Operands, stream: StreamRef): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    const given = readOperands(operands)
    return refuseOperands(plan.problem, given) ?? refuseStream(plan, stream) ?? enqueueGiven(plan, given, stream)
  })

const enqueueGiven = (plan: PlanRef, operands: Operands, stream: StreamRef): Effect.Effect<void, CudaError> => {
  const refused = refuseState(plan)
  if (refused !== undefined) return refused
  const { workspaceBytes } = plan.algorithm
  // The runtime refuses a stream that is gone.
  if (workspaceBytes === 0 || stream.state !== "live") return enqueueWith(plan, operands, stream, undefined)
  const kept = workspaceOf(plan, stream)
  return kept === undefined ? enqueueAfterMaking(plan, operands, stream) : enqueueIn(kept, plan, operands, stream)
}

/** While the workspace was made, the plan may have been released, and the workspace replaced. */
const enqueueAfterMaking = (plan: PlanRef, operands: Operands, stream: StreamRef): Effect.Effect<void, CudaError> =>
  Effect.flatMap(makeWorkspace(plan, stream), () => enqueueGiven(plan, operands, stream))

/** Other fibers may run before the call, and replace the workspace. Then it is refused, and nothing was enqueued. */
const enqueueIn = (
  workspace: DeviceBuffer,
  plan: PlanRef,
  operands: Operands,
  stream: StreamRef
): Effect.Effect<void, CudaError> =>
  Effect.catch(
    enqueueWith(plan, operands, stream, workspace),
    (error) =>
      isUsable(workspace) || error.reason._tag !== "ResourceReleased"
        ? Effect.fail(error)
        : enqueueGiven(plan, operands, stream)
  )

const workspaceOf = (plan: PlanRef, stream: StreamRef): DeviceBuffer | undefined => {
  if (!stream.isRecording) return plan.shared.workspaces.on(stream, plan.algorithm.workspaceBytes)
  return plan.workspace !== undefined && isUsable(plan.workspace) ? plan.workspace : undefined
}

/** The layer's scope is closed before the handle is destroyed. */
const isReleased = (plan: PlanRef): boolean =>
  plan.state !== "live" || plan.handle.ref.state !== "live" || plan.shared.workspaces.isClosed

const refuseState = (plan: PlanRef): CudaError | undefined => {
  if (!isReleased(plan)) return undefined
  const resource = plan.state !== "live" ? plan : plan.handle
  return new CudaError({
    operation: multiplying,
    deviceIndex: plan.deviceIndex,
    reason: { _tag: "ResourceReleased", resource: String(resource) }
  })
}

const refuseStream = (plan: PlanRef, stream: StreamRef): CudaError | undefined => {
  if (stream.deviceIndex === plan.deviceIndex) return undefined
  const deviceIndices = [plan.deviceIndex, stream.deviceIndex] as const
  return new CudaError({
    operation: multiplying,
    deviceIndex: stream.deviceIndex,
    reason: { _tag: "DeviceMismatch", resources: [String(plan), String(stream)], deviceIndices }
  })
}

const makeWorkspace = (plan: PlanRef, stream: StreamRef): Effect.Effect<void, CudaError> => {
  const { algorithm: { workspaceBytes }, deviceIndex, scope, shared: { runtime, workspaces } } = plan
  if (!stream.isRecording) return workspaces.make(stream, workspaceBytes)
  return allocate(runtime, deviceIndex, workspaceBytes, { ordered: true }, scope, ({ buffer, release }) => {
    if (workspaceOf(plan, stream) !== undefined) return release
    plan.workspace = buffer
    return Effect.void
  })
}

const enqueueWith = (
  plan: PlanRef,
  operands: Operands,
  stream: StreamRef,
  workspace: DeviceBuffer | undefined
): Effect.Effect<void, CudaError> => {
  const { library, runtime } = plan.shared
  const used = memoryOf(operands)
  const writes = workspace === undefined ? used.writes : [...used.writes, workspace]
  return runtime.memoryEnqueue(
    { reads: used.reads, writes, status: library, names, simulate: simulationOf(plan, operands, used) },
    (handle) => call(plan, operands, workspace, handle),
    stream
  )
}

const names = { operation: multiplying, call: "cublasLtMatmul" }

/** The memory that a product uses. The order is that of the operands. */
interface Used {
  readonly reads: ReadonlyArray<Part>
  readonly writes: ReadonlyArray<Part>
}

const memoryOf = (operands: Operands): Used => {
  const { a, auxiliary, b, bias, d } = operands
  const reads = [a, b]
  const added = addendOf(operands)
  if (added !== undefined) reads.push(added)
  if (bias !== undefined) reads.push(bias)
  if (operands.scales !== undefined) addScales(reads, operands.scales)
  return { reads, writes: auxiliary === undefined ? [d] : [d, auxiliary] }
}

/** The matrix that is read to be added. */
const addendOf = ({ beta = 0, c, d }: Operands): Part | undefined => beta === 0 ? undefined : c ?? d

const addScales = (reads: Array<Part>, { a, b, c, d }: NonNullable<Operands["scales"]>): void => {
  for (const scale of [a, b, c, d]) {
    if (scale !== undefined) reads.push(scale)
  }
}

const addressOf = ({ buffer, offset }: Part): number => buffer.address + offset

/** The library refuses the result's memory with another type even if nothing is added. */
const addendAddress = ({ problem }: PlanRef, operands: Operands): number => {
  const added = addendOf(operands)
  if (added !== undefined) return addressOf(added)
  return problem.c.type === problem.d.type ? addressOf(operands.d) : 0
}

/** Makes the calls. Returns the first status that is not 0. Other fibers may have released the plan after it was checked. */
const call = (plan: PlanRef, operands: Operands, workspace: DeviceBuffer | undefined, stream: number): number => {
  if (isReleased(plan)) return planReleased
  const { algorithm, alpha, beta, handle, isSwapped } = plan
  const { descriptors, matmul } = plan.native!
  const status = setPointers(plan, operands)
  if (status !== 0) return status
  alpha[0] = operands.alpha ?? 1
  beta[0] = operands.beta ?? 0
  const [a, b] = [addressOf(operands.a), addressOf(operands.b)]
  return Number(
    matmul(
      handle.handle,
      descriptors.product,
      alpha,
      isSwapped ? b : a,
      descriptors.first,
      isSwapped ? a : b,
      descriptors.second,
      beta,
      addendAddress(plan, operands),
      descriptors.c,
      addressOf(operands.d),
      descriptors.d,
      algorithm.bytes,
      workspace?.address ?? 0,
      workspace === undefined ? 0 : algorithm.workspaceBytes,
      stream
    )
  )
}

/** The descriptor contains addresses, so they are set in the turn of the call. */
const setPointers = (plan: PlanRef, operands: Operands): number => {
  const { auxiliary, bias, scales } = operands
  const { auxiliaryPointer, biasPointer, scaleA, scaleB, scaleC, scaleD } = productAttributes
  const { a, b } = plan.isSwapped ? { a: scales?.b, b: scales?.a } : scales ?? {}
  return setPointer(plan, biasPointer, bias) || setPointer(plan, auxiliaryPointer, auxiliary) ||
    setPointer(plan, scaleA, a) || setPointer(plan, scaleB, b) ||
    setPointer(plan, scaleC, scales?.c) || setPointer(plan, scaleD, scales?.d)
}

const setPointer = (plan: PlanRef, attribute: number, part: Part | undefined): number => {
  const address = part === undefined ? 0 : addressOf(part)
  if ((plan.addresses.get(attribute) ?? 0) === address) return 0
  const { descriptors, setAttribute } = plan.native!
  plan.address[0] = BigInt(address)
  const status = Number(setAttribute(descriptors.product, attribute, plan.address, 8))
  if (status === 0) plan.addresses.set(attribute, address)
  return status
}

/** The plain product, of the bytes of the same memory. */
const simulationOf = (plan: PlanRef, operands: Operands, used: Used) => {
  if (plan.native !== undefined) return undefined
  return (reads: ReadonlyArray<Uint8Array>, writes: ReadonlyArray<Uint8Array>): void => {
    const { alpha = 1, beta = 0, scales } = operands
    const { reads: parts } = used
    const read = (part: Part | undefined) => part === undefined ? undefined : reads[parts.indexOf(part)]
    const scale = (part: Part | undefined) => {
      const bytes = read(part)
      return bytes === undefined ? 1 : new DataView(bytes.buffer, bytes.byteOffset).getFloat32(0, true)
    }
    multiply(plan.problem, {
      a: reads[0]!,
      b: reads[1]!,
      c: read(addendOf(operands)),
      d: writes[0]!,
      bias: read(operands.bias),
      auxiliary: writes[1],
      alpha,
      beta,
      scales: { a: scale(scales?.a), b: scale(scales?.b), c: scale(scales?.c), d: scale(scales?.d) }
    })
  }
}
