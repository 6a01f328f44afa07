/**
 * The operands of a product, checked against its plan.
 */
import { invalidArgument } from "../../CudaError.ts"
import type { CudaError } from "../../CudaError.ts"
import { isBuffer } from "../../CudaMemory.ts"
import type { DeviceBuffer, ElementType, SliceOf } from "../../CudaMemory.ts"
import type { MatrixType } from "./numbers.ts"
import { alignmentOf } from "./problem.ts"
import type { Problem } from "./problem.ts"

type Part = SliceOf<ElementType, DeviceBuffer>

/** The memory and the factors of a product. */
export interface Operands {
  readonly a: Part
  readonly b: Part
  /** The matrix that is added, with the layout of the result. Default: the result. Only read if `beta` is not 0. */
  readonly c?: Part | undefined
  /** Where the result is stored. */
  readonly d: Part
  /** The bias, if the plan's epilogue adds one. */
  readonly bias?: Part | undefined
  /** Where the input of the activation is stored, if the plan's epilogue does so. */
  readonly auxiliary?: Part | undefined
  /** The factor of the product. Default: 1. */
  readonly alpha?: number | undefined
  /** The factor of `c`. Default: 0. */
  readonly beta?: number | undefined
  /** Numbers of `f32` in device memory by which 8-bit floats are multiplied, one for each matrix. Default: 1. */
  readonly scales?: Scales | undefined
}

/** The factors of matrices of 8-bit floats. */
export interface Scales {
  readonly a?: Part | undefined
  readonly b?: Part | undefined
  readonly c?: Part | undefined
  readonly d?: Part | undefined
}

export const multiplying = "CudaBlas.matmul"

const no = (argument: string, value: unknown, expected: string) =>
  invalidArgument(multiplying, argument, value, expected)

/** Reads everything once: the object of the program may change until the call, and a getter may return anything. */
export const readOperands = (operands: Operands): Operands => {
  if (!isObject(operands)) return operands
  const { a, alpha, auxiliary, b, beta, bias, c, d, scales } = operands
  return {
    a: readPart(a),
    b: readPart(b),
    c: readPart(c),
    d: readPart(d),
    bias: readPart(bias),
    auxiliary: readPart(auxiliary),
    alpha,
    beta,
    scales: readScales(scales)
  }
}

const isObject = (value: unknown): value is object => typeof value === "object" && value !== null

function readPart(part: Part): Part
function readPart(part: Part | undefined): Part | undefined
function readPart(part: Part | undefined): Part | undefined {
  if (!isObject(part) || isBuffer(part)) return part
  const { buffer, byteLength, element, offset }: Part = part
  return { buffer, byteLength, element, offset }
}

const readScales = (scales: Scales | undefined): Scales | undefined => {
  if (!isObject(scales)) return scales
  const { a, b, c, d } = scales
  return { a: readPart(a), b: readPart(b), c: readPart(c), d: readPart(d) }
}

/** Returns the failure of the first operand that does not fit. What does not depend on the plan is checked when the product is enqueued. */
export const refuseOperands = (problem: Problem, operands: Operands): CudaError | undefined => {
  if (!isObject(operands)) return no("operands", operands, "the matrices a, b and d")
  const { a, alpha = 1, auxiliary, b, beta = 0, bias, c, d } = operands
  return refuseMatrix("a", a, problem) ?? refuseMatrix("b", b, problem) ?? refuseMatrix("d", d, problem) ??
    (c === undefined ? refuseAddend(problem, beta) : refuseMatrix("c", c, problem)) ??
    refuseOptional("bias", bias, problem.bias?.byteLength, 16) ??
    refuseOptional("auxiliary", auxiliary, problem.auxiliary?.byteLength, 16) ??
    refuseFactor("alpha", alpha, problem) ?? refuseFactor("beta", beta, problem) ??
    refuseScales(problem, operands.scales)
}

const refuseMatrix = (name: "a" | "b" | "c" | "d", part: Part, problem: Problem): CudaError | undefined => {
  const layout = problem[name]
  return refuseElements(name, part, layout.type) ??
    refusePart(name, part, layout.byteLength, alignmentOf(problem, layout))
}

/** Bytes may be of any type. 8-bit floats have no element type of their own, so that they are `u8`. */
const refuseElements = (name: string, part: Part, type: MatrixType): CudaError | undefined => {
  const element = part?.element
  const expected = type.startsWith("f8") ? "u8" : type
  return element === undefined || element === expected
    ? undefined
    : no(name, part, `elements of ${expected}, for a matrix of ${type}`)
}

const refusePart = (name: string, part: Part, byteLength: number, alignment: number): CudaError | undefined => {
  if (!isPart(part)) return no(name, part, "a buffer of a device, or a part of one")
  if (part.byteLength < byteLength) return no(name, part, `at least ${byteLength} bytes`)
  if ((part.buffer.address + part.offset) % alignment === 0) return undefined
  return no(name, part, `memory aligned to ${alignment} bytes`)
}

const isPart = (part: unknown): part is Part =>
  isObject(part) && "buffer" in part && isBuffer(part.buffer) &&
  part.buffer.kind === "device"

/** The result can be added to unless its type differs. */
const refuseAddend = (problem: Problem, beta: number): CudaError | undefined =>
  beta === 0 || problem.c.type === problem.d.type
    ? undefined
    : no("c", undefined, `a matrix of ${problem.c.type}, because beta is not 0`)

const refuseOptional = (name: string, part: Part | undefined, byteLength: number | undefined, alignment: number) => {
  if (byteLength !== undefined) return refusePart(name, part!, byteLength, alignment)
  return part === undefined ? undefined : no(name, part, "undefined, because the plan has no such epilogue")
}

const refuseFactor = (name: string, factor: number, { scale }: Problem): CudaError | undefined => {
  if (scale === "i32" ? Number.isInteger(factor) && (factor | 0) === factor : typeof factor === "number") {
    return undefined
  }
  return no(name, factor, scale === "i32" ? "an integer of 32 bits" : "a number")
}

const refuseScales = (problem: Problem, scales: Scales | undefined): CudaError | undefined => {
  if (scales === undefined) return undefined
  if (!isObject(scales)) return no("scales", scales, "factors of a, b, c and d")
  for (const name of ["a", "b", "c", "d"] as const) {
    const scale = scales[name]
    if (scale === undefined) continue
    const { type } = problem[name]
    if (!type.startsWith("f8")) return no(`scales.${name}`, scale, `undefined, because ${name} is of ${type}`)
    const refused = refusePart(`scales.${name}`, scale, 4, 4)
    if (refused !== undefined) return refused
  }
  return undefined
}
