/* Python's way to the decoder in C (decoders/c): whole files in memory, without the interpreter lock.

   A file that does not decode is reported as None or False, without a reason: the caller then has
   tqcodec/format/container.py say what is wrong. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>

#include "tqcdec.h"

typedef struct {
    PyObject_HEAD
    Py_buffer data; /* stays while the file is open */
    tqc_file *file;
} File;

static void File_dealloc(File *self)
{
    tqc_close(self->file);
    if (self->data.obj) PyBuffer_Release(&self->data);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* (name, dtype, shape, index of the tensor it is tied to or None) */
static PyObject *describe(const tqc_tensor *tensor)
{
    PyObject *shape = PyTuple_New(tensor->dimensions);
    if (!shape) return NULL;
    for (unsigned i = 0; i < tensor->dimensions; i++) {
        PyObject *length = PyLong_FromUnsignedLongLong(tensor->shape[i]);
        if (!length) {
            Py_DECREF(shape);
            return NULL;
        }
        PyTuple_SET_ITEM(shape, i, length);
    }
    PyObject *twin = tensor->same_as < 0 ? Py_NewRef(Py_None) : PyLong_FromLongLong(tensor->same_as);
    if (!twin) {
        Py_DECREF(shape);
        return NULL;
    }
    return Py_BuildValue("s#sNN", tensor->name, (Py_ssize_t)tensor->name_size, tensor->dtype, shape, twin);
}

static PyObject *File_tensors(File *self, PyObject *Py_UNUSED(ignored))
{
    size_t count = tqc_tensor_count(self->file);
    PyObject *list = PyList_New((Py_ssize_t)count);
    if (!list) return NULL;
    for (size_t i = 0; i < count; i++) {
        PyObject *item = describe(tqc_tensor_at(self->file, i));
        if (!item) {
            Py_DECREF(list);
            return NULL;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, item);
    }
    return list;
}

typedef struct {
    Py_buffer *views; /* of the buffers that are given */
    void **out;       /* for each tensor of the file, NULL if it is not wanted */
    Py_ssize_t count; /* views that are held */
} Buffers;

static void release(Buffers *buffers)
{
    for (Py_ssize_t i = 0; i < buffers->count; i++) PyBuffer_Release(&buffers->views[i]);
    free(buffers->views);
    free(buffers->out);
}

static int acquire(const tqc_file *file, PyObject *pairs, Buffers *buffers)
{
    Py_ssize_t length = PyList_GET_SIZE(pairs);
    buffers->count = 0;
    buffers->views = malloc((length ? (size_t)length : 1) * sizeof *buffers->views);
    buffers->out = calloc(tqc_tensor_count(file) + 1, sizeof *buffers->out);
    if (!buffers->views || !buffers->out) {
        PyErr_NoMemory();
        return 0;
    }
    for (Py_ssize_t i = 0; i < length; i++) {
        Py_ssize_t index;
        PyObject *object;
        Py_buffer *view = &buffers->views[i];
        if (!PyArg_ParseTuple(PyList_GET_ITEM(pairs, i), "nO", &index, &object)) return 0;
        const tqc_tensor *tensor = index < 0 ? NULL : tqc_tensor_at(file, (size_t)index);
        if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)) return 0;
        buffers->count++;
        if (!tensor || (uint64_t)view->len != tensor->bytes) {
            PyErr_SetString(PyExc_ValueError, "a buffer has not the size of its tensor");
            return 0;
        }
        buffers->out[index] = view->buf;
    }
    return 1;
}

/* decode([(index, buffer)]): True if these tensors were decoded; tied ones are left out. MemoryError
   where the machine has not enough. */
static PyObject *File_decode(File *self, PyObject *pairs)
{
    if (!PyList_Check(pairs)) return PyErr_Format(PyExc_TypeError, "a list is needed");
    Buffers buffers;
    if (!acquire(self->file, pairs, &buffers)) {
        release(&buffers);
        return NULL;
    }
    tqc_options options = {.memory_limit = UINT64_MAX}; /* decoded bytes are limited, and that bounds it */
    tqc_verdict verdict = TQC_NO_MEMORY;
    Py_BEGIN_ALLOW_THREADS
    tqc_workspace *workspace = tqc_workspace_open(&options);
    if (workspace) verdict = tqc_decode_each(self->file, workspace, buffers.out, NULL);
    tqc_workspace_close(workspace);
    Py_END_ALLOW_THREADS
    release(&buffers);
    if (verdict == TQC_NO_MEMORY) return PyErr_NoMemory();
    return PyBool_FromLong(verdict == TQC_DECODED);
}

static PyMethodDef File_methods[] = {
    {"tensors", (PyCFunction)File_tensors, METH_NOARGS, NULL},
    {"decode", (PyCFunction)File_decode, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject FileType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "tqcodec.native._decoder.File",
    .tp_basicsize = sizeof(File),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = (destructor)File_dealloc,
    .tp_methods = File_methods,
};

/* open(data, limit): a File, or None if header, directory or tables do not decode. */
static PyObject *decoder_open(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer data;
    unsigned long long limit;
    if (!PyArg_ParseTuple(arguments, "y*K", &data, &limit)) return NULL;
    File *self = PyObject_New(File, &FileType);
    if (!self) {
        PyBuffer_Release(&data);
        return NULL;
    }
    self->data = data;
    self->file = NULL;
    tqc_options options = {.memory_limit = UINT64_MAX, .decoded_limit = limit};
    if (tqc_open_memory(data.buf, (size_t)data.len, &options, &self->file, NULL) != TQC_DECODED) {
        Py_DECREF(self);
        Py_RETURN_NONE;
    }
    return (PyObject *)self;
}

static PyMethodDef methods[] = {
    {"open", decoder_open, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_decoder", .m_size = -1, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__decoder(void)
{
    if (PyType_Ready(&FileType)) return NULL;
    return PyModule_Create(&module);
}
